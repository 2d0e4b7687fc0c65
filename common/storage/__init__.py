"""Storage: files at a path or a URL, through fsspec."""
