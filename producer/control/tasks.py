"""The tasks that Celery apps send: their names, arguments and results are part of hugqueue's API (docs/celery.md).

Wrong arguments and failed jobs end a task with an exception of Python itself: a result in JSON names only its type, and
the app that reads it has no module of hugqueue.
"""

import functools
import inspect
import json
import logging
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, TypeVar

from celery import Celery
from celery.canvas import Signature
from celery.exceptions import Ignore

from common.errors import HugqueueError, ModelError, UnknownJob, UsageError
from common.jobs import Job
from common.records import Json
from common.results import ResultLayout
from producer.client import Client
from producer.control.app import CONTROL_QUEUE
from producer.control.arguments import check_job, check_submit
from producer.control.waits import Waits
from producer.job_handle import JobHandle
from producer.openai import response_line

T = TypeVar("T")
logger = logging.getLogger(__name__)

SUBMIT, WAIT, STATUS, RESULTS, CANCEL = (
    f"hugqueue.{name}" for name in ("submit", "wait", "status", "results", "cancel")
)
#: Results that one message holds at most, and their characters; more of them are read from files or by commands.
MAX_RESULTS, MAX_RESULTS_LENGTH = 10_000, 16 * 1024 * 1024
#: What a task fails with because of its arguments, or of its job: logged without a traceback.
_EXPECTED = (ValueError, LookupError, RuntimeError)
#: Characters of a result that logs and monitors show.
_SHOWN_LENGTH = 100
#: Seconds for which a task waits for Redis.
_PATIENCE = 30.0


class ControlTasks:
    """What the tasks do.

    Args:
        client: Of the queue; it opens only what is shared.
        waits: Keeps the tasks that wait.
    """

    def __init__(self, client: Client, waits: Waits) -> None:
        self._client = client
        self._waits = waits

    def add_to(self, app: Celery) -> None:
        """Register the tasks."""
        bodies: dict[str, Callable[..., Any]] = {
            SUBMIT: self._submit,
            WAIT: self._wait,
            STATUS: self._status,
            RESULTS: self._results,
            CANCEL: self._cancel,
        }
        for name, body in bodies.items():
            shown = 0 if name == RESULTS else _SHOWN_LENGTH  # logs and monitors show no text of records
            task = app.task(_plain_errors(name, body), name=name, bind=True, throws=_EXPECTED)
            task.resultrepr_maxsize = shown

    def _submit(self, task: Any, /, records: Json = None, **options: Any) -> str:
        """Submit a job and return its id; `callback` is sent when it ends, with its description."""
        check_submit(records, options)
        callback = _signature(options.pop("callback", None), task.app)
        # A message may be delivered twice, and this task run again.
        key = options.pop("idempotency_key", None) or f"celery-task:{task.request.id}"
        job = self._retried(lambda: self._client.submit(records=records, idempotency_key=key, **options))
        logger.info("task %s is job %s", task.request.id, job.id)
        if callback is not None:
            wait = task.app.signature(WAIT, args=(job.id,), kwargs={"check": False})
            wait.apply_async(link=callback, ignore_result=True, task_id=f"{task.request.id}:callback")
        return job.id

    def _wait(self, task: Any, /, job: Json, *, check: bool = True) -> dict[str, Json]:
        """Return the description of a job once it has ended."""
        handle = self._job(job)
        if not handle.state.status.finished:
            message = task.signature_from_request(queue=CONTROL_QUEUE, expires=None)
            self._retried(lambda: self._waits.add(handle.id, task.request.id, message))
            raise Ignore
        if check:
            handle.raise_for_status()
        return _description(handle.state)

    def _status(self, _task: Any, /, job: Json) -> dict[str, Json]:
        """Return the description of a job as it is now."""
        return _description(self._job(job).state)

    def _results(self, _task: Any, /, job: Json, *, limit: int | None = None) -> list[Json]:
        """Return the results of a job, as `producer results` prints them."""
        if limit is not None and not (isinstance(limit, int) and 0 < limit <= MAX_RESULTS):
            raise UsageError(f"limit: expected a number of results from 1 to {MAX_RESULTS:,}, found {limit!r:.80}.")
        handle = self._job(job)
        _check_results(handle.state, limit)
        return self._retried(lambda: list(_lines(handle, limit)))

    def _cancel(self, _task: Any, /, job: Json) -> str:
        """Stop a job; return its status."""
        handle = self._job(job)
        return str(self._retried(handle.cancel))

    def _job(self, job: Json) -> JobHandle:
        job_id = check_job(job)
        return self._retried(lambda: self._client.job(job_id))

    def _retried(self, step: Callable[[], T]) -> T:
        return self._client.connection.retry_while_unavailable(step, time.monotonic() + _PATIENCE)


def _plain_errors(name: str, body: Callable[..., Any]) -> Callable[..., Any]:
    """Return the body of a task with errors of Python, which every app has, in place of those of hugqueue."""
    signature = inspect.signature(body)

    @functools.wraps(body)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ValueError(f"{name}: {error}.") from error
        try:
            return body(*args, **kwargs)
        except UnknownJob as error:
            raise LookupError(str(error)) from error
        except (UsageError, ModelError) as error:
            raise ValueError(str(error)) from error
        except HugqueueError as error:
            raise RuntimeError(str(error)) from error

    return run


def _description(job: Job) -> dict[str, Json]:
    """Return what `producer status --json` shows of a job, and where workers write its results if they do."""
    return {**job.as_dict(), "output_location": job.spec.output.location if job.spec.output else None}


def _signature(callback: dict[str, Json] | None, app: Celery) -> Signature | None:
    try:
        return Signature.from_dict(callback, app=app) if callback is not None else None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UsageError(f"hugqueue.submit: callback is not a signature of Celery: {callback!r:.80}.") from error


def _check_results(job: Job, limit: int | None) -> None:
    if job.spec.training is not None:
        raise UsageError(f"Job {job.id} trains a model; it has no results.")
    if not job.status.finished:
        raise UsageError(f"Job {job.id} is {job.status}: send hugqueue.wait before hugqueue.results.")
    if limit is None and (job.records or 0) > MAX_RESULTS:
        raise UsageError(_too_many(job, f"{job.records:,} results"))


def _too_many(job: Job, found: str) -> str:
    return (
        f"Job {job.id} has {found}, too many for a message. Set limit, submit it with output=, or read them with "
        f"`producer results {job.id}`."
    )


def _lines(handle: JobHandle, limit: int | None) -> Iterator[Json]:
    job, length = handle.state, 0
    layout = ResultLayout.of(job.spec)
    for number, row in enumerate(islice(handle.results(), limit)):
        line = response_line(job.spec, number, row) if job.spec.format else layout.to_line(row)
        length += len(line)
        if length > MAX_RESULTS_LENGTH:
            raise UsageError(_too_many(job, f"more than {MAX_RESULTS_LENGTH:,} characters of results"))
        yield json.loads(line)
