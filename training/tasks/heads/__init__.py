"""What a head needs beside its weights: what classes weigh, a scale, thresholds, a way to compare embeddings."""
