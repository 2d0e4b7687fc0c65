"""Models: references to them, and the registry of those that were fine-tuned here."""
