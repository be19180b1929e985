"""The base model in memory: loaded, quantized, identified, and what it offers to adapters."""
