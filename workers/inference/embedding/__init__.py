"""Sentence embeddings: pooling and the configuration of sentence-transformers."""
