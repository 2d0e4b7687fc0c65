"""The unfinished jobs of a queue, read a bounded number at a time."""

import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import msgspec
import redis
from msgspec import Meta

from common.jobs import JOB_ID, JobSpec, JobStatus, short_model
from common.metrics_server import label
from common.redis import keys
from common.redis.keys import JobKeys
from common.validation import checked

#: Jobs read in one refresh; with more, those that were read longest ago come first.
MAX_READ = 3000
#: Jobs read in one round trip.
_PAGE = 500

_Count = Annotated[int, Meta(ge=0, le=10**15)]


class _Progress(msgspec.Struct, frozen=True):
    """The fields of a job's hash that change; all of them are texts there."""

    status: JobStatus
    records: _Count | None = None
    chunks: _Count | None = None
    succeeded: _Count = 0
    failed_in_round: _Count = 0
    compute_ms: _Count = 0


_FIELDS = _Progress.__struct_fields__


class Group(NamedTuple):
    """What jobs have in common, as the values of labels."""

    queue: str
    task: str
    model: str
    priority: str

    @classmethod
    def of(cls, spec: JobSpec) -> "Group":
        """Return the group of a job."""
        return cls(spec.queue, label(spec.task), label(short_model(spec.model)), spec.priority)


class _Origin(NamedTuple):
    """What never changes of a job; its whole spec may be large."""

    group: Group
    created_at: float


@dataclass(frozen=True, slots=True)
class UnfinishedJob:
    """A job as it was when it was read last."""

    group: Group
    created_at: float  #: seconds since the epoch
    status: JobStatus
    records_left: int
    chunks_left: int
    seconds_per_record: float | None  #: of one device; None before the first chunk is done


class UnfinishedJobs:
    """The unfinished jobs, as far as they were read."""

    def __init__(self, client: "redis.Redis") -> None:
        self._client = client
        self._origins: dict[str, _Origin] = {}
        self._known: dict[str, UnfinishedJob | None] = {}  # None: not a job that this release can read
        self._read_at: dict[str, float] = {}
        self.unread = 0  #: how many jobs were never read

    def refresh(self) -> list[UnfinishedJob]:
        """Read up to `MAX_READ` jobs and return all that are known.

        Raises:
            redis.RedisError: Redis is away.
        """
        members = (member.decode(errors="replace") for member in self._client.smembers(keys.ACTIVE))
        ids = {job_id for job_id in members if JOB_ID.match(job_id)}
        for gone in self._read_at.keys() - ids:
            del self._read_at[gone], self._known[gone]
            self._origins.pop(gone, None)
        chosen = heapq.nsmallest(MAX_READ, ids, key=lambda job_id: self._read_at.get(job_id, 0.0))
        for start in range(0, len(chosen), _PAGE):
            self._read(chosen[start : start + _PAGE])
        self.unread = len(ids) - len(self._known)
        return [job for job in self._known.values() if job is not None]

    def _read(self, ids: Sequence[str]) -> None:
        with self._client.pipeline(transaction=False) as pipe:
            for job_id in ids:
                found = JobKeys.of(job_id)
                pipe.hmget(found.job, *_FIELDS, *(() if job_id in self._origins else ("spec",)))
                pipe.hlen(found.commits)
            answers = pipe.execute(raise_on_error=False)
        now = time.monotonic()
        for job_id, fields, committed in zip(ids, answers[::2], answers[1::2], strict=True):
            self._read_at[job_id] = now
            self._known[job_id] = self._decode(job_id, fields, committed)

    def _decode(self, job_id: str, fields: Any, committed: Any) -> UnfinishedJob | None:
        """Return the job in the answers for it; None if they are errors, or hold no job."""
        if not isinstance(fields, list) or not isinstance(committed, int):
            return None
        try:
            if job_id not in self._origins:
                self._origins[job_id] = _origin(job_id, fields.pop() or b"")
            texts = {name: text.decode() for name, text in zip(_FIELDS, fields, strict=True) if text is not None}
            found: _Progress = checked(texts, _Progress, "a job's hash", strict=False)
        except (ValueError, RecursionError):
            return None
        if found.status not in (JobStatus.QUEUED, JobStatus.RUNNING):
            return UnfinishedJob(*self._origins[job_id], found.status, 0, 0, None)
        # What failed in an earlier round runs again; `failed_in_round` are those that have run in this one.
        done = found.succeeded + found.failed_in_round
        chunks_left = max(0, (found.chunks or 0) - committed)
        records_left = max(0, (found.records or 0) - done) if chunks_left else 0
        speed = found.compute_ms / 1000 / done if done and found.compute_ms else None
        return UnfinishedJob(*self._origins[job_id], found.status, records_left, chunks_left, speed)


def _origin(job_id: str, text: bytes) -> _Origin:
    spec = JobSpec.decode(text)
    if spec.id != job_id:
        raise ValueError(f"the job {job_id} has the id of another one")
    return _Origin(Group.of(spec), spec.created_at)
