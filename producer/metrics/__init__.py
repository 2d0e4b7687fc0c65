"""Metrics of a queue for Prometheus: what is left to do, what was done, workers, memory."""
