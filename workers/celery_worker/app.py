"""The Celery app of a worker: `celery -A workers.app worker` starts one.

It receives the tickets; `workers.celery_worker.process_chunk` processes them.
"""

import contextlib
import logging
import sys
import time
import warnings
from typing import Any, ClassVar

import redis
from celery import Celery, bootsteps
from celery.exceptions import CPendingDeprecationWarning
from celery.worker import state
from celery.worker.control import control_command
from celery.worker.request import Request

from common.broker.app import make_app
from common.broker.tickets import FINETUNE, HANDLER_PREFIX
from common.distribution import missing_worker_libraries
from common.errors import Cancelled, HugqueueError, UsageError
from common.jobs import JOB_ID
from common.logs import use_safe_records
from common.redis.client import connect
from common.redis.schema import check_schema
from common.settings import Settings, load_settings
from common.tasks import TASKS, plugin_tasks
from workers import EXIT_CANNOT_START, EXIT_DEVICE_BROKEN, EXIT_SHUT_DOWN
from workers.celery_worker.context import WorkerContext
from workers.celery_worker.process_chunk import TicketFailed, run_ticket
from workers.devices import default_device, only_trains, queues_of

logger = logging.getLogger(__name__)


class WorkerContextStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Starts the worker's context before Celery consumes, and stops it after Celery has stopped consuming.

    A boot step, not a signal handler: Celery swallows what signal handlers raise.
    """

    requires: ClassVar[set[str]] = {"celery.worker.components:Pool"}
    context: ClassVar[WorkerContext | None] = None

    def start(self, worker: Any) -> None:
        """Start the context; a worker that cannot start exits with the reason."""
        # At every lost connection Celery asks for a setting that deletes running work (`common.broker.app`).
        warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)
        try:
            if settings.broker_url is None:
                raise UsageError("No Redis is configured: set CELERY_BROKER_URL or REDIS_URL.")
            if needs := missing_worker_libraries():
                raise UsageError(f"A worker needs {needs}.")
            _check_schema(settings.broker_url)
            WorkerContextStep.context = WorkerContext(worker.hostname, worker.app, settings, worker.concurrency)
            WorkerContextStep.context.start(_stop_requested)
        except Cancelled as stopped:
            raise SystemExit(0) from stopped
        except HugqueueError as error:
            logger.error("This worker cannot start: %s", error)
            raise SystemExit(EXIT_CANNOT_START) from error

    def stop(self, worker: Any) -> None:
        """Let the running chunks finish, then stop the context."""
        if WorkerContextStep.context is not None:
            WorkerContextStep.context.stop(settings.grace_seconds)
            if WorkerContextStep.context.device.broken is not None:
                worker.exitcode = EXIT_DEVICE_BROKEN  # the supervisor counts these

    def terminate(self, worker: Any) -> None:
        """Stop the context at once."""
        if WorkerContextStep.context is not None:
            WorkerContextStep.context.stop(0.0)


@control_command(name="shutdown")  # type: ignore[untyped-decorator]
def shut_down(_panel: Any, **_: object) -> dict[str, str]:
    """Shut down this worker, in place of Celery's command, which does not answer: `celery control` then says it failed.

    Its supervisor would start it again if it ended as after a SIGTERM.
    """
    logger.warning("a remote command shuts this worker down")
    state.should_stop = EXIT_SHUT_DOWN if settings.supervised else 0
    return {"ok": "shutting down"}


def _check_schema(url: str) -> None:
    """Raise `UsageError` if the jobs in Redis are of another release. While Redis is away, that is unknown."""
    with contextlib.closing(connect(url)) as client, contextlib.suppress(redis.RedisError):
        check_schema(client, url)


def _stop_requested() -> bool:
    """Whether SIGTERM arrived: Celery only notes it while its boot steps run, and preloading may take minutes."""
    return state.should_stop is not None or state.should_terminate is not None


def handle(request: Any, job_id: object = None, *_: object, **__: object) -> str:
    """Process a ticket; refuse a message that is not one."""
    if not isinstance(job_id, str) or not JOB_ID.match(job_id) or WorkerContextStep.context is None:
        logger.warning("refused a message that is not a ticket: %.200r", job_id)
        return "refused: not a ticket"
    return run_ticket(WorkerContextStep.context, job_id, str(request.id))


class TicketRequest(Request):  # type: ignore[misc]
    """Celery's request; of a failed ticket, Flower shows the reason and the time it took, without a traceback."""

    def send_event(self, type: str, **fields: Any) -> None:
        """Send an event of this ticket."""
        if type == "task-failed":
            fields |= {"result": fields.get("exception"), "runtime": time.time() - (self.time_start or time.time())}
            fields["traceback"] = ""
        super().send_event(type, **fields)


def make_worker_app(settings: Settings) -> Celery:
    """Return the app with one handler for each task and the boot step that starts the context."""
    worker_app = make_app(settings)
    for name in (FINETUNE, *(HANDLER_PREFIX + task for task in (*TASKS, *plugin_tasks()))):
        # A ticket that fails on purpose is logged where it happens, in one line.
        @worker_app.task(name=name, bind=True, throws=(TicketFailed,), Request=TicketRequest)  # type: ignore[untyped-decorator]
        def handler(self: Any, *args: object, **kwargs: object) -> str:
            return handle(self.request, *args, **kwargs)

    if only_trains(settings):
        worker_app.conf.worker_concurrency = 1
    worker_app.steps["worker"].add(WorkerContextStep)
    worker_app.amqp.queues.select(queues_of(settings))
    return worker_app


def _settings() -> Settings:
    """Return the worker's settings; wrong ones end it with a sentence instead of the traceback of an import."""
    try:
        return default_device(load_settings())
    except HugqueueError as error:
        sys.stderr.write(f"Error: {error}\n")
        raise SystemExit(EXIT_CANNOT_START) from error


use_safe_records()
settings = _settings()
app = make_worker_app(settings)
