"""Text generation: limits, sampling, continuous batching."""
