"""The contract between producer and workers: records and jobs, tasks, settings, and the queue in Redis.

Imports neither `producer` nor `workers`, and never torch, transformers, datasets or click.
"""
