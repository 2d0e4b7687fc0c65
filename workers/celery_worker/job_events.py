"""Jobs as rows of Flower, by events of Celery's kind: one row for each job, beside those of its tickets.

Every worker runs one sender; the one whose reaper holds the lock sends. Each pass sends one batch, with the jobs that
changed and those that Flower was not told of for a while: one that is started later shows them too. The set `SHOWN` in
Redis holds the jobs whose end was not told yet, so that none is missed between two senders.
"""

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from common.jobs import JOB_ID, Job, JobStatus
from common.queue.jobs import JobStore
from common.records import Json
from common.redis import keys
from common.redis.locks import has_lock
from workers.celery_worker.job_rows import EVENTS, ROW_NAME, Rate, row_fields

logger = logging.getLogger(__name__)

#: The worker that Flower shows as the home of the rows.
HOME = "jobs@hugqueue"
#: Seconds between two passes.
INTERVAL_SECONDS = 3.0
#: Seconds after which a row is sent again although it did not change: with a pass, less than ten.
_AGAIN_SECONDS = 5.5
#: Jobs that one pass looks at: those that run, and a page of all unfinished ones; the next pass has the next page.
_MAX_RUNNING, _PAGE = 1000, 500
#: Events in one message.
_BATCH = 100


@dataclass(slots=True)
class _Row:
    """What was last sent of a job."""

    rate: Rate = field(default_factory=Rate)
    event: str = ""
    text: str = ""
    sent_at: float = 0.0  #: by Redis's clock
    started: bool = False


class JobEvents:
    """Sends the rows every few seconds, as long as this worker's reaper holds the lock.

    Args:
        name: of the worker.
        app: its Celery app.
        store: with the jobs.
    """

    def __init__(self, name: str, app: Celery, store: JobStore) -> None:
        self._name = name
        self._app = app
        self._store = store
        self._rows: dict[str, _Row] = {}  #: of unfinished jobs
        self._cursor = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="job events", daemon=True)

    def start(self) -> None:
        """Begin to send, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop; another worker continues."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(INTERVAL_SECONDS):
            try:
                if has_lock(self._store.client, keys.REAPER, self._name):
                    self.send()
                else:
                    self._rows.clear()
            except (redis.RedisError, OperationalError) as error:
                logger.info("the states of jobs could not be sent to Flower: %s", error)
            except Exception:  # the boundary: data in Redis is untrusted
                logger.exception("the states of jobs could not be sent to Flower")

    def send(self) -> None:
        """Send what changed, and what was not sent for a while.

        Raises:
            redis.RedisError: Redis is away.
            kombu.exceptions.OperationalError: the same, from kombu.
        """
        self._cursor, page = self._store.shown(self._cursor, _PAGE)
        running = (job_id for job_id, row in self._rows.items() if row.started)
        ids = dict.fromkeys([*islice(running, _MAX_RUNNING), *page])
        jobs = self._store.find([job_id for job_id in ids if JOB_ID.match(job_id)])
        now = self._store.now()
        with self._dispatcher() as dispatcher:
            active = sum(job is not None and job.status is JobStatus.RUNNING for job in jobs.values())
            dispatcher.send("worker-heartbeat", freq=2 * INTERVAL_SECONDS, active=active, sw_ident="hugqueue")
            for job_id, job in jobs.items():
                self._send_job(dispatcher, job_id, job, now)
            dispatcher.flush()
        over = [job_id for job_id, job in jobs.items() if job is None or job.status.finished]
        self._store.note_end_shown(over + [job_id for job_id in ids if not JOB_ID.match(job_id)])
        for job_id in over:
            self._rows.pop(job_id, None)

    @contextmanager
    def _dispatcher(self) -> Iterator[Any]:
        """Yield a dispatcher that collects events of rows and publishes them in batches."""
        with self._app.events.default_dispatcher(hostname=HOME) as dispatcher:
            dispatcher.buffer_group = frozenset({"task"})
            dispatcher.buffer_limit = _BATCH
            yield dispatcher

    def _send_job(self, dispatcher: Any, job_id: str, job: Job | None, now: float) -> None:
        row = self._rows.get(job_id)
        if job is None:
            if row is not None:
                _end_as_revoked(dispatcher, {"uuid": job_id, "name": ROW_NAME, "result": "deleted"})
            return
        if row is None:
            row = self._rows[job_id] = _Row()
        event, fields = EVENTS[job.status], row_fields(job, row.rate.of(job, now))
        if (event, fields["result"]) == (row.event, row.text) and abs(now - row.sent_at) < _AGAIN_SECONDS:
            return
        if not row.event:
            # After RETRY a receiver takes any state; of a job that had ended it would take none.
            if job.round:
                dispatcher.send("task-retried", uuid=job_id, name=ROW_NAME)
            else:
                dispatcher.send("task-received", **fields)
        if job.started_at and not row.started:
            row.started = True
            dispatcher.send("task-started", **fields)
        row.event, row.text, row.sent_at = event, str(fields["result"]), now
        if job.status is JobStatus.CANCELLED:
            _end_as_revoked(dispatcher, fields)
        else:
            dispatcher.send(event, **fields)


def _end_as_revoked(dispatcher: Any, fields: Mapping[str, Json]) -> None:
    """End a row as REVOKED. To a receiver that state comes before those of one's own, but any comes after RETRY."""
    dispatcher.send("task-retried", uuid=fields["uuid"], name=ROW_NAME)
    dispatcher.send("task-revoked", **fields, retried=None)
