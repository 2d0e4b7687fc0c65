"""The commands of `producer`: each one parses its arguments, calls the Python API and prints the result."""
