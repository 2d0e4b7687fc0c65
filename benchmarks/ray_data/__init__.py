"""Ray Data with sentence-transformers, in its own environment."""
