"""The device process, which owns one device and runs the models, and its client in the Celery process."""
