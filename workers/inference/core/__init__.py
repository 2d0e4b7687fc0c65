"""What all tasks share: runners, token budgets, batches."""
