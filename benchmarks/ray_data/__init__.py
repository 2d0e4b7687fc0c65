"""Ray Data with sentence-transformers, in an environment of its own."""
