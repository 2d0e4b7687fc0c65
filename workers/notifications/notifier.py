"""The notifier: sends a request to the URL of each job that has ended.

Every worker runs one; the one that has its lock sends. Each request has a thread of its own, and those to one origin
are few at a time, so that a slow receiver holds up no other and never the reaper. A worker whose request got no answer
leaves the lock to another one for a moment, which may reach what it does not.
"""

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

import redis

from common.durations import format_duration
from common.errors import UnknownJob, UsageError
from common.jobs import JOB_ID, Job
from common.notifications import check_notify_url, mask_notify_url, origin_of
from common.queue.jobs import JobStore
from common.queue.notifications import Attempt, NotificationQueue
from common.redis import keys
from common.redis.locks import acquire_lock, release_lock
from common.settings import Settings
from workers.notifications.post import PostAnswer, PostFailed, post
from workers.notifications.webhook import webhook_body, webhook_headers, webhook_id

logger = logging.getLogger(__name__)

#: Seconds between two passes: as a rule, and at least, if a request ends and makes room for another one.
INTERVAL_SECONDS, _BUSY_SECONDS = 1.0, 0.1
#: Seconds for which a worker leaves the lock to another one, and until it does so again: it may be the only one.
_YIELD_SECONDS, _TURN_SECONDS = 2.5, 10.0
#: Requests at a time: all, and those to one origin.
_MAX_SENDING, _MAX_PER_ORIGIN = 64, 4
#: Notifications that one pass looks at; the next one continues there.
_PAGE = 100
#: Milliseconds after which the lock of a dead worker expires.
_LOCK_MS = 10_000
#: Seconds that an attempt may take beyond its timeout, to resolve a name and to note its outcome.
_CLAIM_MARGIN = 30.0
#: The longest pause between two attempts, in seconds.
_MAX_PAUSE = 3600.0
#: Statuses whose `Retry-After` counts, and the longest pause that a receiver can ask for, in seconds.
_ASKING_TO_WAIT = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_MAX_RETRY_AFTER = 6 * 3600.0
#: Seconds that a stopping worker takes to send what is due.
_STOP_SECONDS = 5.0


class Notifier:
    """Sends what is due every second, while this worker has the lock.

    Args:
        name: of the worker.
        store: with the jobs.
        settings: of the worker.
    """

    def __init__(self, name: str, store: JobStore, settings: Settings) -> None:
        self._name = name
        self._store = store
        self._settings = settings
        self._queue = NotificationQueue(store.client)
        self._sending: dict[str, str] = {}  #: job -> origin, of each request that is under way
        self._offset = 0
        self._yield_until = float("-inf")
        self._warned = False
        self._wake = threading.Event()  #: set when a request has ended
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notifier", daemon=True)

    def start(self) -> None:
        """Begin to send, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Send what is due, for a few seconds at most; another worker, or the next one, continues."""
        self._stopped.set()
        self._wake.set()
        self._thread.join()
        self._yield_until = float("-inf")
        end = time.monotonic() + _STOP_SECONDS
        while (self._pass() or self._sending) and time.monotonic() < end:
            time.sleep(0.05)
        self._release()

    def _run(self) -> None:
        while not self._stopped.wait(_BUSY_SECONDS):
            self._pass()
            self._wake.wait(INTERVAL_SECONDS)
            self._wake.clear()

    def _pass(self) -> bool:
        """Send what is due if this worker has the lock; return whether any request was begun."""
        try:
            if time.monotonic() < self._yield_until:
                self._release()
            elif acquire_lock(self._store.client, keys.NOTIFIER, self._name, _LOCK_MS):
                return self._send_due()
        except redis.RedisError as error:
            logger.info("notifications wait for Redis: %s", error)
        except Exception:  # the boundary: data in Redis is untrusted
            logger.exception("unexpected error in the notifier")
        return False

    def _release(self) -> None:
        try:
            release_lock(self._store.client, keys.NOTIFIER, self._name)
        except redis.RedisError as error:
            logger.info("the notifier's lock could not be released and will expire: %s", error)

    def _send_due(self) -> bool:
        """Begin to send what is due, as far as there is room; return whether any request was begun.

        Raises:
            redis.RedisError: Redis is away.
        """
        now = self._store.now()
        page = self._queue.due(now, self._offset, _PAGE)
        if not page and self._offset:
            self._offset, page = 0, self._queue.due(now, 0, _PAGE)
        self._offset = self._offset + _PAGE if len(page) == _PAGE else 0
        jobs = self._store.find([member for member in page if JOB_ID.match(member)])
        urls = {job_id: job.spec.notify for job_id, job in jobs.items() if job is not None and job.spec.notify}
        if lost := [member for member in page if member not in urls]:
            logger.warning("%d notifications are dropped: their jobs are gone, or cannot be read", len(lost))
            self._queue.drop(lost)
        chosen = self._choose(urls)
        claimed = self._queue.claim(list(chosen), self._settings.notify_timeout + _CLAIM_MARGIN) if chosen else []
        for attempt in claimed:
            self._sending[attempt.job_id] = chosen[attempt.job_id]
            threading.Thread(target=self._deliver, args=(attempt,), name="notification", daemon=True).start()
        return bool(claimed)

    def _choose(self, urls: Mapping[str, str]) -> dict[str, str]:
        """Return the jobs for whose requests there is room, and their origins."""
        busy = Counter(list(self._sending.values()))
        chosen: dict[str, str] = {}
        for job_id, url in urls.items():
            origin = _origin(url)
            if busy.total() < _MAX_SENDING and busy[origin] < _MAX_PER_ORIGIN and job_id not in self._sending:
                busy[origin] += 1
                chosen[job_id] = origin
        return chosen

    def _deliver(self, attempt: Attempt) -> None:
        """Make an attempt and note its outcome; if that fails, the next attempt follows when the claim has run out."""
        job_id = attempt.job_id
        try:
            job = self._store.job(job_id)
            if job.status.finished:  # otherwise it was retried meanwhile
                self._note(job, attempt, self._send(job))
        except UnknownJob:
            logger.info("job %s was deleted before its notification was sent", job_id)
        except redis.RedisError as error:
            logger.info("job %s: the outcome of its notification could not be noted: %s", job_id, error)
        except Exception:  # the boundary: data in Redis is untrusted
            logger.exception("job %s: unexpected error in the notifier", job_id)
        finally:
            self._sending.pop(job_id, None)
            self._wake.set()

    def _send(self, job: Job) -> "_Fault | None":
        """Send the request; return what is wrong, None if it was delivered."""
        if not self._settings.notify_secrets and not self._warned:
            self._warned = True
            logger.warning("HUGQUEUE_NOTIFY_SECRET is not set: notifications are not signed")
        try:
            body, id_ = webhook_body(job), webhook_id(job)
            headers = webhook_headers(id_, body, time.time(), self._settings.notify_secrets)
            url = check_notify_url(job.spec.notify or "", "the job's URL")
            allowed, timeout = self._settings.notify_allowed, self._settings.notify_timeout
            answer = post(url, body, headers, allowed=allowed, timeout=timeout)
        except UsageError as error:  # only a forged job has such a URL
            return _Fault(str(error), may_pass=False)
        except PostFailed as error:
            self._yield()
            return _Fault(str(error))
        except Exception as error:  # the boundary: noted like any other, so that attempts end some time
            logger.exception("job %s: unexpected error in its notification", job.id)
            return _Fault(f"unexpected {type(error).__name__}; the log of {self._name} has it")
        if HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
            return None
        return _Fault.of(answer)

    def _yield(self) -> None:
        """Leave the lock to another worker for a moment, unless this one did so a short while ago."""
        if (now := time.monotonic()) > self._yield_until + _TURN_SECONDS:
            self._yield_until = now + _YIELD_SECONDS

    def _note(self, job: Job, attempt: Attempt, fault: "_Fault | None") -> None:
        shown = mask_notify_url(job.spec.notify or "")
        if fault is None:
            self._queue.note_delivered(attempt)
            logger.info("job %s: notified %s that it is %s", job.id, shown, job.status)
            return
        pause = max(fault.retry_after, pause_after(attempt.number, self._settings.notify_retry_seconds))
        left = (job.finished_at or 0.0) + self._settings.notify_give_up_seconds - self._store.now()
        if not fault.may_pass or pause > left:
            self._queue.note_failure(attempt, fault.text, None)
            logger.warning(
                "job %s: could not notify %s that it is %s, given up after attempt %d: %s",
                *(job.id, shown, job.status, attempt.number, fault.text),
            )
            return
        self._queue.note_failure(attempt, fault.text, pause)
        logger.info(
            "job %s: could not notify %s that it is %s, next attempt in %.0f s: %s",
            *(job.id, shown, job.status, pause, fault.text),
        )


@dataclass(frozen=True, slots=True)
class _Fault:
    """Why an attempt failed."""

    text: str
    may_pass: bool = True  #: whether another attempt makes sense
    retry_after: float = 0.0  #: seconds before which it does not

    @classmethod
    def of(cls, answer: PostAnswer) -> "_Fault":
        """Return what is wrong with an answer that does not count as delivered."""
        text = _describe_status(answer.status)
        if answer.status not in _ASKING_TO_WAIT or not answer.retry_after:
            return cls(text, may_pass=answer.status != HTTPStatus.GONE)
        wait = min(answer.retry_after, _MAX_RETRY_AFTER)
        return cls(f"{text} and asks for a pause of {format_duration(wait)}", retry_after=wait)


def pause_after(attempt: int, first: float) -> float:
    """Return the seconds between an attempt and the next one: from `first`, doubled each time, up to an hour.

    A random part of up to a quarter is added, so that a receiver that comes back is not flooded by all jobs at once.
    """
    return min(first * 2.0 ** min(attempt - 1, 30), _MAX_PAUSE) * random.uniform(1.0, 1.25)  # noqa: S311 - no secret


def _origin(url: str) -> str:
    """Return the origin of a job's URL; empty for an invalid one."""
    try:
        return origin_of(check_notify_url(url, "the job's URL"))
    except UsageError:
        return ""


def _describe_status(status: int) -> str:
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        return f"it answered {status}; redirects are not followed"
    known = status in list(HTTPStatus)
    return f"it answered {status}{f' ({HTTPStatus(status).phrase})' if known else ''}"
