"""What all tasks share: runners, token budgets, batches, parameters."""
