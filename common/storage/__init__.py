"""Files under a path or an address, through fsspec."""
