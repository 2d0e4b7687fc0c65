"""Fine-tune jobs: their plan, their training data and their report."""
