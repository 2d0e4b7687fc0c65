"""The tasks: one module for each task or family, and the registry."""
