"""Loading models: files, dtypes, faster layers."""
