"""The Hub as a place for results and models: written by the producer, with its own token."""
