"""A worker that tells neither Flower nor URLs about jobs: `python -m benchmarks.scale.quiet_worker worker ...`."""

from common.broker.app import run_celery
from workers.celery_worker.job_events import JobEvents
from workers.notifications.notifier import Notifier

for sender in (JobEvents, Notifier):
    sender.start = sender.stop = lambda _: None  # type: ignore[method-assign]

from workers.celery_worker.app import app  # noqa: E402

__all__ = ["app"]

if __name__ == "__main__":
    run_celery(app)
