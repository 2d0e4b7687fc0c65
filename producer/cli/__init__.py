"""The command line `producer`: parses arguments, calls the Python API, prints."""
