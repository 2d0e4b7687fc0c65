"""`python -m benchmarks.scale`: measures the queue itself with many workers, chunks and records."""
