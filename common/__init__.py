"""The contract between producer and workers: values, names, settings, and the store in Redis.

Imports neither `producer` nor `workers`, and never torch, transformers, datasets or click.
"""
