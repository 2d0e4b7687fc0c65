"""Engines: programs that generate text from token ids, in place of transformers."""
