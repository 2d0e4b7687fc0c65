"""Inference: models, and the runners that turn records into outcomes. Imports neither Celery nor Redis."""
