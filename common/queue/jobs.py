"""Jobs in Redis: creating, finding and deleting them, and opening their payloads."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, cast

import redis

from common.errors import ModelError, StorageError, UnknownJob
from common.jobs import JOB_ID, Job, JobSpec, JobStatus, decode_job
from common.redis import keys
from common.redis.keys import JobKeys
from common.redis.schema import write_schema
from common.redis.scripts import Scripts
from common.storage.locations import MayOpen
from common.storage.storage import open_storage

if TYPE_CHECKING:  # they import pyarrow, which commands that only look at jobs do not need
    from common.payloads.job_payloads import JobPayloads
    from common.payloads.output_committer import OutputCommitter

#: Jobs looked up in one round trip.
_PAGE = 200


def _texts(members: Iterable[bytes]) -> list[str]:
    return [member.decode(errors="replace") for member in members]


def _decode(job_id: str, raw: Mapping[bytes, bytes]) -> Job | None:
    """Return the job in a hash; None if it is not valid, or has another id, so that its work would be another job's."""
    try:
        job = decode_job(raw)
    except (ValueError, RecursionError):
        return None
    return job if job.id == job_id else None


def _spec_matches(raw: Mapping[bytes, bytes], matches: Callable[[JobSpec], bool] | None) -> bool:
    """Whether the spec in a hash matches, and is valid: decoding all of a job takes longer."""
    try:
        return matches is None or matches(JobSpec.decode(raw.get(b"spec", b"")))
    except (ValueError, RecursionError):
        return False


class JobStore:
    """Reads and writes jobs, and opens their payloads."""

    def __init__(self, client: "redis.Redis", result_ttl: float, may_open: MayOpen = lambda _: False) -> None:
        """Use the Redis of `client`.

        Args:
            client: a connection.
            result_ttl: seconds for which finished jobs are kept.
            may_open: whether this process may open a path or URL that a job names.
        """
        self.client = client
        self._may_open = may_open
        self._scripts = Scripts(client)
        self._ttl_ms = int(result_ttl * 1000)

    # Jobs

    def create(self, spec: JobSpec, key: str | None = None) -> str:
        """Begin a job: status `submitting`, no chunk yet; return its id.

        Args:
            spec: the job.
            key: its idempotency key. If a job has it already, that job's id is returned and no job begun; a job that
                was abandoned before it was accepted loses its key.

        Raises:
            redis.RedisError: Redis is away or full.
        """
        write_schema(self.client)
        key_in_redis = "" if key is None else keys.idempotency(key)
        answer = self._scripts.run("create", spec.id, spec.encode(), self._ttl_ms, spec.created_at, key_in_redis)
        return str(answer.decode())

    def job(self, job_id: str) -> Job:
        """Return the job.

        Raises:
            UnknownJob: there is no such job, or it is not one that this release can read.
        """
        job = _decode(job_id, self.client.hgetall(JobKeys.of(job_id).job))
        if job is None:
            raise UnknownJob(job_id)
        return job

    def exists(self, job_id: str) -> bool:
        """Whether Redis holds a job of that id, readable or not."""
        return bool(self.client.exists(JobKeys.of(job_id).job))

    def of_key(self, key: str) -> str | None:
        """Return the id of the job that has an idempotency key."""
        found = self.client.get(keys.idempotency(key))
        return found.decode() if found else None

    def newest(self) -> str | None:
        """Return the id of the job that was submitted last."""
        return next((job.id for job in self.each_job()), None)

    def ids_with_prefix(self, prefix: str) -> list[str]:
        """Return the ids of the jobs that begin with `prefix`, the newest first."""
        ids = _texts(self.client.zrevrange(keys.JOBS, 0, -1))
        return [job_id for job_id in ids if job_id.startswith(prefix) and self.exists(job_id)]

    def each_job(
        self, status: JobStatus | None = None, matches: Callable[[JobSpec], bool] | None = None
    ) -> Iterator[Job]:
        """Yield all jobs, or those with a status and a matching spec, the newest first, a page of them at a time.

        The ids of expired jobs are removed.
        """
        ids = _texts(self.client.zrevrange(keys.JOBS, 0, -1))
        for start in range(0, len(ids), _PAGE):
            yield from self._page(ids[start : start + _PAGE], status or "", matches)

    def _page(self, ids: list[str], status: str, matches: Callable[[JobSpec], bool] | None) -> Iterator[Job]:
        answers = self._scripts.run_on("read_jobs", [JobKeys.of(job_id).job for job_id in ids], status)
        gone = [job_id for job_id, fields in zip(ids, answers, strict=True) if fields == []]
        if gone:
            self.client.zrem(keys.JOBS, *gone)
        for job_id, fields in zip(ids, answers, strict=True):
            raw = dict(zip(fields[::2], fields[1::2], strict=True)) if fields else {}
            if raw and _spec_matches(raw, matches) and (job := _decode(job_id, raw)) is not None:
                yield job

    def active(self) -> list[str]:
        """Return the ids of unfinished jobs."""
        return sorted(_texts(self.client.smembers(keys.ACTIVE)))

    def active_pages(self, size: int) -> Iterator[list[str]]:
        """Yield the ids of unfinished jobs, about `size` at a time; one that is added meanwhile may be missed."""
        cursor = None
        while cursor != 0:
            cursor, members = self.client.sscan(keys.ACTIVE, cursor or 0, count=size)
            yield _texts(members)

    def due(self) -> list[str]:
        """Return the ids of unfinished jobs that a reaper is to check by now, by Redis's clock."""
        return _texts(self.client.zrangebyscore(keys.DUE, "-inf", self.now()))

    def take_unblocked(self, count: int) -> list[str]:
        """Return up to `count` jobs that waited for others and are to be checked now, each once.

        If the reaper that takes them dies, the next one finds them among those that are due.
        """
        return _texts(self.client.spop(keys.UNBLOCKED, count) or ())

    def waiters(self, job_id: str) -> list[str]:
        """Return the jobs that were submitted to wait for a job, or to read its results, and are not deleted."""
        return _texts(self.client.zrangebyscore(JobKeys.of(job_id).waiters, "-inf", "+inf"))

    def shown(self, cursor: int, count: int) -> tuple[int, list[str]]:
        """Return the next cursor, and the ids of about `count` jobs whose end monitors have not been told.

        The first cursor is 0, and so is the one after the last jobs.
        """
        cursor, members = self.client.sscan(keys.SHOWN, cursor, count=count)
        return cursor, _texts(members)

    def note_end_shown(self, ids: Iterable[str]) -> None:
        """Note that monitors were told how these jobs ended."""
        if members := list(ids):
            self.client.srem(keys.SHOWN, *members)

    def find(self, ids: Sequence[str]) -> dict[str, Job | None]:
        """Return the jobs of these ids, in one round trip: None for one that is gone, nothing for an unreadable one."""
        with self.client.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hgetall(JobKeys.of(job_id).job)
            answers = zip(ids, pipe.execute(raise_on_error=False), strict=True)
        hashes = {job_id: raw for job_id, raw in answers if isinstance(raw, dict)}
        found = {job_id: _decode(job_id, raw) if raw else None for job_id, raw in hashes.items()}
        return {job_id: job for job_id, job in found.items() if job is not None or not hashes[job_id]}

    def delete(self, job_id: str, only: Literal["any", "finished", "unaccepted"] = "any") -> str:
        """Delete a job and all that belongs to it, even when Redis is full.

        Args:
            job_id: the job.
            only: the jobs that may be deleted. Workers on an unfinished job find that it is gone; a producer that
                gives up a submit must not delete a job that was accepted meanwhile.

        Returns:
            `deleted`; `unknown`; or what prevents it: its status, or `awaited`, if others wait for it or read its
            results.
        """
        parts = self._parts_of(job_id)
        answer = str(self._scripts.run("delete", job_id, only).decode())
        if answer == "deleted":
            with contextlib.suppress(StorageError):  # the reaper removes what this process cannot
                self.remove_files(job_id)
                if parts is not None:
                    parts.abort_job()
        return answer

    def set_field(self, job_id: str, field: str, value: str) -> None:
        """Write a field of a job that has not ended: its `stage`, or when its producer was last seen."""
        self._scripts.write(job_id, "job", field, value)

    def now(self) -> float:
        """Return the time of Redis's clock, in seconds: the only clock that all sides share."""
        seconds, micros = cast("tuple[int, int]", self.client.time())
        return seconds + micros / 1e6

    # Payloads

    def payloads(self, spec: JobSpec) -> "JobPayloads":
        """Return the payloads of a job.

        Raises:
            ModelError: `address_not_allowed`, the job names a location that this process may not open.
        """
        from common.payloads.job_payloads import JobPayloads

        return JobPayloads(self.client, self._scripts, spec, self._may_open)

    def orphaned_files(self, cursor: int, count: int) -> tuple[int, list[str]]:
        """Check the files of about `count` jobs; return the next cursor, and the jobs that no longer exist.

        The first cursor is 0, and so is the one after the last jobs.
        """
        cursor, stored = self.client.hscan(keys.STORED, cursor, count=count)
        ids = [job_id for raw_id in stored if JOB_ID.match(job_id := raw_id.decode(errors="replace"))]
        with self.client.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.exists(JobKeys.of(job_id).job)
            return cursor, [job_id for job_id, found in zip(ids, pipe.execute(), strict=True) if not found]

    def _parts_of(self, job_id: str) -> "OutputCommitter | None":
        """Return the output that workers write for a job, if there is one that this process may open."""
        try:
            return self.payloads(self.job(job_id).spec).parts
        except (UnknownJob, ModelError, StorageError):
            return None

    def remove_files(self, job_id: str) -> bool:
        """Remove the files of a job, if this process may open their location; return whether there were any.

        Raises:
            StorageError: they cannot be removed now.
        """
        location = (self.client.hget(keys.STORED, job_id) or b"").decode(errors="replace")
        if not location or not self._may_open(location):
            return False
        open_storage(location, job_id).remove_all()
        self.client.hdel(keys.STORED, job_id)
        return True
