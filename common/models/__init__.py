"""What a model is called, and the store of those that were fine-tuned here."""
