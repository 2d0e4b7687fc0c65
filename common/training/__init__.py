"""Fine-tune jobs: their options, examples and labels."""
