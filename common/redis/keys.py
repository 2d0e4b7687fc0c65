"""Redis keys of hugqueue, all named here.

All begin with `hugqueue:`, Celery's own with `hugqueue:celery:`: one pattern for an access list.
"""

import hashlib
from dataclasses import dataclass

PREFIX = "hugqueue:"
#: Prefix of Celery's and kombu's own keys.
CELERY_PREFIX = f"{PREFIX}celery:"

#: Number of the schema of all keys (`common.redis.schema`); written with the first job, deleted with the last one.
SCHEMA = f"{PREFIX}schema"
#: Sorted set of all job ids, by time of creation.
JOBS = f"{PREFIX}jobs"
#: Set of the ids of unfinished jobs.
ACTIVE = f"{PREFIX}active"
#: Set of the ids of jobs that monitors show as unfinished, until they are told how these ended.
SHOWN = f"{PREFIX}shown"
#: Set of the ids of jobs that waited for others and that a reaper is to check now, a few times a second.
UNBLOCKED = f"{PREFIX}unblocked"
#: Sorted set of unfinished jobs by the time at which a reaper is to check them.
DUE = f"{PREFIX}due"
#: Set of the names of workers; each has a heartbeat key while it lives.
WORKERS = f"{PREFIX}workers"
#: Hash: job -> the location of its payloads, if that is not Redis; until its files are removed.
STORED = f"{PREFIX}stored"
#: Hash: what this queue has done so far, for metrics (`common.queue.totals`); deleted with the last job.
TOTALS = f"{PREFIX}totals"
#: Sorted set of the ended jobs whose URLs are to be notified, by time of the next attempt.
NOTIFICATIONS = f"{PREFIX}notifications"
#: Lock of the worker that sends notifications at present.
NOTIFIER = f"{PREFIX}notifier"
#: Lock of the worker that reaps at present.
REAPER = f"{PREFIX}reaper"
#: Set of the ids of jobs for whose end tasks of Celery apps wait (`producer.control`), and the lock of who wakes these.
WAITED = f"{PREFIX}control:waited"
CONTROL = f"{PREFIX}control:lock"
#: kombu's record of the messages of the control queue that are being processed.
CONTROL_UNACKED = f"{PREFIX}control:unacked"
#: List of messages that could not be decoded, the latest first.
DEAD_LETTERS = f"{CELERY_PREFIX}dead-letters"


def worker(name: str) -> str:
    """Heartbeat of a worker: JSON, with a time to live."""
    return f"{PREFIX}worker:{name}"


def token_budgets(device: str) -> str:
    """Hash of calibrated batch sizes on devices of that name: model -> tokens; with a time to live."""
    return f"{PREFIX}token-budgets:{device}"


def device_claim(uuid: str) -> str:
    """Lock of the GPU with that UUID."""
    return f"{PREFIX}device:{uuid}"


def idempotency(key: str) -> str:
    """Id of the job of an idempotency key; lives as long as the job."""
    return f"{PREFIX}idempotency:{hashlib.sha256(key.encode(errors='surrogatepass')).hexdigest()}"


def ended_channel(job_id: str) -> str:
    """Channel on which the end of a job is published (`lua/shared.lua`)."""
    return f"{JobKeys.of(job_id).job}:ended"


def waits(job_id: str) -> str:
    """Hash of the tasks of Celery apps that wait for the end of a job: id of the task -> its message as JSON."""
    return f"{PREFIX}control:waits:{job_id}"


@dataclass(frozen=True, slots=True)
class JobKeys:
    """The keys of one job."""

    job: str  #: hash: what was submitted, status, counts
    input: str  #: hash: chunk -> payload of records
    output: str  #: hash: chunk:round:lease number -> payload of outcomes
    open: str  #: list: chunks that are to be leased
    leased: str  #: set: chunks that a worker has leased
    attempts: str  #: hash: chunk -> leases of this round that failed; chunk:FIELD -> what else is known of them:
    #: serial (number of the last lease), holder (of that lease), counted (its lease counts as an attempt), retries
    #: (after transient faults), isolated (position of the isolated record that runs), isolated_deaths (positions over
    #: which workers died), done:POSITION (passed), progress (steps trained)
    commits: str  #: hash: chunk -> round:lease number:succeeded:failed:truncated
    commit_history: str  #: hash: chunk -> round:lease number:succeeded:failed:truncated of every commit, oldest first
    failed_counts: str  #: hash: chunk -> number of failed records in its last outcomes
    tickets: str  #: set: ids of the valid tickets
    refusals: str  #: hash: worker -> why it cannot run this job
    delayed: str  #: sorted set: chunks that are retried later, by time
    waiters: str  #: sorted set: jobs that wait for this one or read its results, with score 0 until they end, then 1

    @classmethod
    def of(cls, job_id: str) -> "JobKeys":
        """Return the keys of that job."""
        base = f"{PREFIX}job:{job_id}"
        names = [name for name in cls.__slots__ if name != "job"]
        return cls(base, *(f"{base}:{name}" for name in names))

    @classmethod
    def position(cls, name: str) -> int:
        """Return the position in `all` of the key of that name, counted from 1 as in Lua."""
        return list(cls.__slots__).index(name) + 1

    def lease(self, chunk: int) -> str:
        """Lease of a chunk: its holder; with a time to live."""
        return f"{self.job}:lease:{chunk}"

    def all(self) -> list[str]:
        """Every key that lives as long as the job (leases expire)."""
        return [getattr(self, name) for name in self.__slots__]
