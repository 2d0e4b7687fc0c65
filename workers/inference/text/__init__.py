"""Texts: tokenization, truncation, padding, packing."""
