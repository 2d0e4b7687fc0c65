"""Celery app for `celery -A hugqueue flower` and other monitoring commands.

It has no task handlers: workers are started with `workers start`.
"""

from common.broker.app import make_app, run_celery
from common.settings import load_settings

app = make_app(load_settings())

if __name__ == "__main__":
    run_celery(app)
