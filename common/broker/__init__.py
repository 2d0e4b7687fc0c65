"""Celery: the app and its settings, tickets, and a more robust transport of kombu."""
