"""The Celery process of a worker: takes tickets, leases chunks, commits outcomes. Never imports torch."""
