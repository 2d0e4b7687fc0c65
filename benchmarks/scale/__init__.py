"""`python -m benchmarks.scale`: many workers, many chunks, many records; what the queue itself costs."""
