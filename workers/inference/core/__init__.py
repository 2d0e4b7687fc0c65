"""Shared by all tasks: runners, token budgets, batches."""
