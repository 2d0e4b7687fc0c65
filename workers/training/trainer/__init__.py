"""The trainer process: loads data and model, trains, evaluates, saves."""
