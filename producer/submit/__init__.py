"""Submitting a job: from inputs and options to chunks in the store."""
