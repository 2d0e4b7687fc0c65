"""The Celery app that serves the tasks, on the broker of the apps that send them.

These apps have Celery's default settings: no prefix of keys, a queue `celery`, results in Redis.
"""

from dataclasses import replace

from celery import Celery
from celery.exceptions import ImproperlyConfigured
from kombu import Queue
from kombu.transport import TRANSPORT_ALIASES

from common.broker.app import make_app
from common.broker.tickets import HANDLER_PREFIX
from common.errors import UsageError
from common.redis.keys import CONTROL_UNACKED
from common.redis.url import check_redis_url, mask_url
from common.settings import Settings

#: The queue that the tasks are sent to.
CONTROL_QUEUE = "hugqueue.control"
#: Seconds after which a message is delivered again that a killed process had taken; a submit rarely takes as long.
_VISIBILITY_SECONDS = 900
#: Where what follows a task is sent if it names no queue: Celery's own default.
_DEFAULT_QUEUE = "celery"


def make_control_app(settings: Settings, concurrency: int) -> Celery:
    """Return the app without its tasks; nothing is connected yet.

    Args:
        settings: With the URL of Redis.
        concurrency: How many tasks to run at once.

    Raises:
        UsageError: The URL of the broker or of the results is wrong.
    """
    broker = _checked_broker(settings.control_broker_url) or settings.broker_url or ""
    backend = _checked_redis("HUGQUEUE_CONTROL_RESULT_BACKEND", settings.control_result_backend)
    app = make_app(replace(settings, broker_url=broker))
    app.conf.update(
        result_backend=backend or (broker if _is_redis(broker) else settings.broker_url),
        task_ignore_result=False,
        # As long as the jobs: Celery's day may end between two jobs of a chord, whose body would never be sent.
        result_expires=max(1, int(settings.result_ttl)),
        # What follows a task is sent once it is done, and lost if that fails: wait for Redis for a minute.
        task_publish_retry_policy={"max_retries": 25, "interval_start": 0.2, "interval_step": 0.4, "interval_max": 3},
        # A message that is delivered again because its process died just before the end.
        worker_deduplicate_successful_tasks=True,
        worker_concurrency=concurrency,
        # Commands such as `shutdown` of the other apps are for their own workers.
        worker_enable_remote_control=False,
        task_queues=[Queue(CONTROL_QUEUE, routing_key=CONTROL_QUEUE)],
        # Of a chain, the next task is sent from here.
        task_routes={f"{HANDLER_PREFIX}*": {"queue": CONTROL_QUEUE}},
        task_default_queue=_DEFAULT_QUEUE,
        task_create_missing_queues=True,
        broker_transport_options=_transport_options(app, broker),
    )
    if not _is_redis(broker):
        app.amqp_cls = "celery.app.amqp:AMQP"  # without what `common.broker` adds to the transport of Redis
    app.amqp.queues.select(CONTROL_QUEUE)
    _check_backend(app, backend)
    return app


def _transport_options(app: Celery, broker: str) -> dict[str, object]:
    """Return the options of the transport, which acknowledges messages once they are processed."""
    if not _is_redis(broker):
        return {}
    options = dict(app.conf.broker_transport_options)
    del options["global_keyprefix"], options["ack_emulation"]
    # Keys of its own: the other apps may have another visibility timeout.
    names = {"unacked_key": "", "unacked_index_key": "_index", "unacked_mutex_key": "_mutex"}
    options |= {name: CONTROL_UNACKED + end for name, end in names.items()}
    return options | {"visibility_timeout": _VISIBILITY_SECONDS}


def _is_redis(url: str) -> bool:
    return url.startswith("redis")


def _checked_broker(url: str) -> str:
    if url and url.partition("://")[0].lower() not in TRANSPORT_ALIASES:
        raise UsageError(
            f"HUGQUEUE_CONTROL_BROKER_URL: {mask_url(url)} is not the URL of a broker of Celery, such as "
            "redis://HOST:6379/0 or amqp://USER:PASSWORD@HOST//."
        )
    return _checked_redis("HUGQUEUE_CONTROL_BROKER_URL", url)


def _checked_redis(variable: str, url: str) -> str:
    """Return the URL, checked if it is one of Redis."""
    if not _is_redis(url):
        return url
    try:
        return check_redis_url(url)
    except UsageError as error:
        raise UsageError(f"{variable}: {error}") from error


def _check_backend(app: Celery, url: str) -> None:
    try:
        _ = app.backend
    except (ImproperlyConfigured, ImportError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UsageError(f"HUGQUEUE_CONTROL_RESULT_BACKEND: {mask_url(url)} cannot be used: {reason}.") from error
