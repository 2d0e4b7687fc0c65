"""Celery's side of the contract: the app, its settings, tickets, and kombu's transport with some things mended."""
