"""Payloads: the records and outcomes of chunks, their format, and where they are stored."""
