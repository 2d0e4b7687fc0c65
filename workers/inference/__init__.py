"""Runners: the model-facing side. They know nothing of Celery or Redis and can be used alone."""
