"""What chunks carry in and out: its format, and where it lies; the parts of an output that workers write."""
