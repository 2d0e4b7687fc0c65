"""The commands of `producer`: each parses, calls, prints, and no more."""
