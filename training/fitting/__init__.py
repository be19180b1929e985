"""Training a prepared model, and measuring it."""
