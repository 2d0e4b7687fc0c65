"""Every Redis key of ours, named here and nowhere else.

All begin with `hugqueue:`, Celery's own with `hugqueue:celery:`: one pattern for an access list.
"""

import hashlib
from dataclasses import dataclass

PREFIX = "hugqueue:"
#: Prefix of Celery's and kombu's own keys.
CELERY_PREFIX = f"{PREFIX}celery:"

#: Number of the form of all that lies here (`common.redis.schema`); written with the first job,
#: gone with the last one.
SCHEMA = f"{PREFIX}schema"
#: Sorted set of all job ids, by time of creation.
JOBS = f"{PREFIX}jobs"
#: Set of the ids of unfinished jobs.
ACTIVE = f"{PREFIX}active"
#: Sorted set of those unfinished jobs that something is about to happen to, by when a reaper is to look at them.
DUE = f"{PREFIX}due"
#: Set of the names of workers; each has a heartbeat key while it lives.
WORKERS = f"{PREFIX}workers"
#: Hash: job -> the address its payloads lie at, if that is not Redis; until its files are gone.
STORED = f"{PREFIX}stored"
#: Which worker reaps at present.
REAPER = f"{PREFIX}reaper"
#: List of messages that could not be decoded, the latest first.
DEAD_LETTERS = f"{CELERY_PREFIX}refused"


def worker(name: str) -> str:
    """Heartbeat of a worker: JSON, with a time to live."""
    return f"{PREFIX}worker:{name}"


def budgets(device: str) -> str:
    """How many tokens a batch should hold on devices of that name: hash, model -> tokens, with a time to live."""
    return f"{PREFIX}budgets:{device}"


def device_claim(uuid: str) -> str:
    """Who uses the GPU of that UUID: with a time to live."""
    return f"{PREFIX}device:{uuid}"


def idempotency(key: str) -> str:
    """Id of the job that an idempotency key stands for: lives as long as the job."""
    return f"{PREFIX}idempotency:{hashlib.sha256(key.encode(errors='surrogatepass')).hexdigest()}"


@dataclass(frozen=True, slots=True)
class JobKeys:
    """The keys of one job."""

    job: str  #: hash: what was submitted, status, counts
    input: str  #: hash: chunk -> payload of records
    output: str  #: hash: chunk:round:serial -> payload of outcomes
    open: str  #: list: chunks that nobody works on
    leased: str  #: set: chunks that somebody works on
    attempts: str  #: hash: chunk -> leases of this round that led nowhere; chunk:FIELD -> what else is known of them:
    #: serial (leases), holder (the last one), counted (its lease counts as an attempt), retries (after transient
    #: faults), isolated (position that runs alone), isolated_deaths (positions over which workers died), done:POSITION
    #: (passed), progress (steps trained)
    commits: str  #: hash: chunk -> round:serial:succeeded:failed:truncated
    commit_history: str  #: hash: chunk -> round:serial:succeeded:failed:truncated of every commit, oldest first
    failed_counts: str  #: hash: chunk -> how many of its records failed when they last had outcomes
    tickets: str  #: set: ids of the tickets that count
    refusals: str  #: hash: worker -> why it cannot serve this job
    delayed: str  #: sorted set: chunks that are tried again later, by when; nobody works on them until then

    @classmethod
    def of(cls, job_id: str) -> "JobKeys":
        """Return the keys of that job."""
        base = f"{PREFIX}job:{job_id}"
        names = [name for name in cls.__slots__ if name != "job"]
        return cls(base, *(f"{base}:{name}" for name in names))

    @classmethod
    def position(cls, name: str) -> int:
        """Return the position of the key of that name in `all`, counted from 1 as scripts do."""
        return list(cls.__slots__).index(name) + 1

    def lease(self, chunk: int) -> str:
        """Who holds the chunk: with a time to live."""
        return f"{self.job}:lease:{chunk}"

    def all(self) -> list[str]:
        """Every key that lives as long as the job (leases end by themselves)."""
        return [getattr(self, name) for name in self.__slots__]
