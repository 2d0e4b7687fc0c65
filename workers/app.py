"""The Celery app of a worker under its conventional name: `celery -A workers.app worker`."""

from common.broker.app import run_celery
from workers.celery_worker.app import app

__all__ = ["app"]

if __name__ == "__main__":
    run_celery(app)
