"""The reaper: finds chunks whose worker is gone, lost tickets, and jobs whose producer died.

Every worker runs one on a timer; a lock in Redis lets one of them work at a time. The cost of a pass depends on
events, not on the number of waiting jobs: it inspects the jobs that are due, and continues a bounded scan of the
others.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

import redis

from common.broker.tickets import send_tickets, waiting_tickets
from common.display_text import replace_control_chars
from common.errors import ModelError, StorageError, UnknownJob, UsageError
from common.jobs import QUEUES, JobSpec, JobStatus
from common.queue.heartbeats import cap_heartbeat_ttls, live_workers, target_tickets
from common.queue.jobs import JobStore
from common.queue.ledger import MAX_TICKETS, MIN_TICKETS, Ledger, ReapReport
from common.queue.output_commit import commit_output
from common.records import Failure
from common.redis import keys
from common.redis.client import is_transient
from common.redis.locks import acquire_lock, release_lock
from common.settings import Settings

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Jobs inspected in one round trip.
PAGE_SIZE = 500
#: Jobs and tickets that one pass scans, besides the jobs that are due; the next pass continues from there.
MAX_PER_PASS = 3000
#: Seconds between two looks for jobs that need not wait for others any more.
_UNBLOCKED_SECONDS = 0.5
#: Jobs whose orphaned files one pass removes.
_MAX_FILE_SETS = 1000


class _PassInterrupted(Exception):
    """Raised in the middle of a pass: another worker reaps, or this one stops."""


class Reaper:
    """Inspects unfinished jobs every `settings.reap_seconds` seconds."""

    def __init__(self, name: str, store: JobStore, ledger: Ledger, settings: Settings) -> None:
        self._name = name
        self._store = store
        self._ledger = ledger
        self._settings = settings
        self._producers = _SubmitWatchdog(settings.producer_ttl)
        self._targets: Mapping[str, int] = {}  #: queue -> how many tickets a job keeps
        self._scan = self._scan_all()
        self._missing: set[str] = set()
        self._broken: set[str] = set()
        self._files_cursor = 0
        self._is_leader = False  #: whether this worker held the lock in its last pass
        self._can_judge_leases = False  #: whether a missing lease counts as lost
        self._redis_run = ""  #: the `run_id` of redis-server, as last seen
        self._judge_leases_from = self._yield_until = self._leader_until = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)

    def start(self) -> None:
        """Start the first pass at once: a new worker issues tickets for its own slots."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and let another worker reap at once."""
        self._stopped.set()
        self._thread.join()
        try:
            release_lock(self._store.client, keys.REAPER, self._name)
        except redis.RedisError as error:
            logger.info("the reaper lock could not be released and will expire: %s", error)

    def _run(self) -> None:
        """Run a pass every few seconds; between two of them, send the tickets of jobs that need not wait any more."""
        next_pass = 0.0
        while not self._stopped.wait(min(max(0.0, next_pass - time.monotonic()), _UNBLOCKED_SECONDS)):
            if time.monotonic() >= next_pass:
                self._attempt(self._pass)
                next_pass = time.monotonic() + self._settings.reap_seconds
            elif self._is_leader:
                self._attempt(self._start_unblocked)

    def _attempt(self, step: Callable[[], None]) -> None:
        try:
            step()
        except _PassInterrupted:
            logger.debug("this pass was not finished")
        except redis.RedisError as error:
            # Others could not renew their leases either: they get a whole lease to come back.
            self._judge_leases_from = time.monotonic() + self._settings.lease_seconds
            logger.info("the reaper is waiting for Redis: %s", error)
        except Exception:  # the boundary: data in Redis is untrusted
            logger.exception("unexpected error in the reaper")

    def _pass(self) -> None:
        self._is_leader = self._acquire_leadership()
        if self._is_leader:
            self.reap()
        if time.monotonic() < self._yield_until:
            self._is_leader = False
            release_lock(self._store.client, keys.REAPER, self._name)

    def _start_unblocked(self) -> None:
        if job_ids := self._store.take_unblocked(PAGE_SIZE):
            self._inspect(job_ids)

    def _acquire_leadership(self) -> bool:
        if time.monotonic() < self._yield_until:
            return False
        self._leader_until = time.monotonic() + self._settings.reap_seconds
        return acquire_lock(self._store.client, keys.REAPER, self._name, int(self._settings.reap_seconds * 2000))

    def _keep_leadership(self) -> None:
        """Keep the lock while there is much to do. Raises `_PassInterrupted`."""
        if self._stopped.is_set() or (time.monotonic() > self._leader_until and not self._acquire_leadership()):
            raise _PassInterrupted

    def reap(self) -> None:
        """Inspect every job that is due, and some of the others.

        Raises:
            redis.RedisError: Redis is away.
        """
        self._remove_files()
        cap_heartbeat_ttls(self._store.client)
        workers = live_workers(self._store.client)
        self._targets = {queue: target_tickets(workers, queue, MIN_TICKETS, MAX_TICKETS) for queue in QUEUES}
        self._can_judge_leases = self._leases_may_be_judged()
        due = self._store.due()
        for start in range(0, len(due), PAGE_SIZE):
            self._inspect(due[start : start + PAGE_SIZE])
            self._keep_leadership()
        scanned = 0
        while scanned < MAX_PER_PASS:
            step = next(self._scan, None)
            if step is None:
                self._scan = self._scan_all()
                return
            scanned += step
            self._keep_leadership()

    def _remove_files(self) -> None:
        """Remove the files of jobs that have expired."""
        step = partial(self._store.orphaned_files, self._files_cursor, _MAX_FILE_SETS)
        self._files_cursor, gone = self._guarded("the list of files", step) or (0, [])
        for job_id in gone:
            if self._guarded(f"the files of job {job_id}", partial(self._store.remove_files, job_id)):
                logger.info("job %s has expired: its files are removed", job_id)

    def _guarded(self, what: str, step: Callable[[], T]) -> T | None:
        """Run a step for one job, so that a job with broken keys does not block the others."""
        try:
            return step()
        except Exception as error:  # the boundary between jobs
            if isinstance(error, redis.RedisError) and not _is_refusal(error):
                raise
            if what not in self._broken:  # it occurs again in each pass: log it once
                logger.error("%s cannot be inspected: %s: %s", what, type(error).__name__, error)
            self._broken.add(what)
            return None

    def _leases_may_be_judged(self) -> bool:
        """Whether missing leases are lost: not right after a restart of Redis, when their holders get time to renew."""
        server = self._store.client.info("server")
        if server["run_id"] != self._redis_run:
            is_first, self._redis_run = not self._redis_run, str(server["run_id"])
            if not is_first or server["uptime_in_seconds"] <= self._settings.lease_seconds:
                self._judge_leases_from = time.monotonic() + self._settings.lease_seconds
        return time.monotonic() > self._judge_leases_from

    # One job

    def _inspect(self, job_ids: Sequence[str], waiting: set[str] | None = None) -> set[str]:
        """Handle everything that is due for these jobs; return their tickets that are missing from `waiting`.

        Args:
            job_ids: the jobs.
            waiting: all tickets that wait in queues; None if unknown, and then none counts as missing.
        """
        reports = self._ledger.reap_jobs(job_ids, judging=self._can_judge_leases)
        missing: set[str] = set()
        for job_id, report in zip(job_ids, reports, strict=True):
            missing |= self._guarded(_job_label(job_id), partial(self._act_on, job_id, report, waiting)) or set()
        return missing

    def _act_on(self, job_id: str, report: ReapReport | redis.RedisError, waiting: set[str] | None) -> set[str]:
        if isinstance(report, redis.RedisError):
            raise report
        if report.status == "unknown":
            self._delete_leftovers(job_id)
        if report.status == "submitting":
            self._watch_producer(job_id, report.producer_seen)
        if report.opened:
            logger.warning(
                "job %s: chunks %s are open again because their workers are gone", job_id, _numbered(report.opened)
            )
        if report.recovered:
            logger.error("job %s: a key was deleted; chunks %s are open again", job_id, _numbered(report.recovered))
        if report.output_uncommitted:
            self._publish(self._spec(job_id))
        missing = report.tickets - waiting if waiting is not None else set()
        # Lost if missing twice in a row: a ticket not yet sent, or in a worker's hand, is missing once.
        lost = missing & self._missing
        self._ledger.void_tickets(job_id, sorted(lost))
        runs = report.status in (JobStatus.QUEUED, JobStatus.RUNNING)
        if runs and len(report.tickets - lost) < min(report.open, max(self._targets.values())):
            self._issue_tickets(self._spec(job_id))
        return missing

    def _watch_producer(self, job_id: str, seen: str) -> None:
        if self._can_judge_leases and self._producers.is_silent(job_id, seen) and self._ledger.abandon(job_id, seen):
            logger.warning("job %s failed: its producer died while submitting", job_id)

    def _spec(self, job_id: str) -> JobSpec:
        try:
            return self._store.job(job_id).spec
        except UnknownJob as error:
            raise ValueError("this version cannot read it") from error

    def _delete_leftovers(self, job_id: str) -> None:
        """Delete the remaining keys of a job that has expired."""
        if self._store.exists(job_id):
            raise ValueError("this version cannot read it")
        self._store.delete(job_id)

    def _publish(self, spec: JobSpec) -> None:
        """Complete a job whose outcomes are in files, if its last worker could not."""
        try:
            if commit_output(self._store, self._ledger, spec.id, self._store.payloads(spec)):
                logger.info("job %s: its output is complete", spec.id)
        except (ModelError, StorageError) as error:
            logger.warning("the output of job %s cannot be finished here: %s", spec.id, error)
            self._store.set_field(spec.id, "stage", f"finishing its output: {replace_control_chars(error.message)}")
            # Let another worker reap for a while, which may have access where this one does not.
            self._yield_until = time.monotonic() + 2 * self._settings.reap_seconds

    def _issue_tickets(self, spec: JobSpec) -> None:
        tickets = self._ledger.issue_tickets(spec.id, self._targets[spec.queue])
        try:
            send_tickets(self._store.client, spec, tickets)
        except UsageError as error:
            self._ledger.fail(spec.id, Failure("unknown_task", str(error)))

    # All jobs

    def _scan_all(self) -> Iterator[int]:
        """Inspect all unfinished jobs and find lost tickets; yield after each page how much it was."""
        waiting: set[str] = set()
        for tickets in waiting_tickets(self._store.client):
            waiting |= tickets
            yield len(tickets)
        missing: set[str] = set()
        for job_ids in self._store.active_pages(PAGE_SIZE):
            missing |= self._inspect(job_ids, waiting)
            yield len(job_ids)
        self._missing = missing


class _SubmitWatchdog:
    """Finds producers that went silent while submitting, by this process's clock: that of Redis may be changed."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._seen: dict[str, tuple[str, float]] = {}  #: job -> `seen`, and since when

    def is_silent(self, job_id: str, seen: str) -> bool:
        """Return whether a producer that was last seen at `seen`, by Redis's clock, counts as dead."""
        now = time.monotonic()
        if self._seen.get(job_id, ("", 0.0))[0] != seen:
            self._seen = {job: known for job, known in self._seen.items() if now - known[1] <= 2 * self._timeout}
            self._seen[job_id] = seen, now
        return now - self._seen[job_id][1] > self._timeout


def _is_refusal(error: Exception) -> bool:
    """Whether Redis is available and refuses, because of this user's permissions or the type of a key."""
    return isinstance(error, redis.ResponseError) and not is_transient(error)


def _numbered(chunks: Iterable[int]) -> list[int]:
    """Return chunk numbers as people count them, from 1."""
    return sorted(chunk + 1 for chunk in chunks)


def _job_label(job_id: str) -> str:
    return f"job {job_id[:100]!r}"
