"""Models on this machine: from a reference to a directory with checked files."""
