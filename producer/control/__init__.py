"""Tasks for Celery apps that do not import hugqueue: `hugqueue.submit`, `hugqueue.wait` and others (docs/celery.md).

A Celery worker of its own serves them on the queue `hugqueue.control`. It needs no model library, and any number of
them may run at once.
"""

from producer.control.serve import serve_tasks

__all__ = ["serve_tasks"]
