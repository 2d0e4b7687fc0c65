"""The Celery app of hugqueue, for `celery -A hugqueue flower` and other commands of Celery that only monitor.

It has no handlers: `workers start` runs workers.
"""

from common.broker.app import make_app, run_celery
from common.settings import load_settings

app = make_app(load_settings())

if __name__ == "__main__":
    run_celery(app)
