"""Fine-tuning for `embedding` and `rerank`, by the trainers of sentence-transformers."""
