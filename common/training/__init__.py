"""What a fine-tune job asks for, and the rules for its examples, labels and checkpoints."""
