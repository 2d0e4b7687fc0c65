"""Text generation: parameters, limits, sampling, continuous batching."""
