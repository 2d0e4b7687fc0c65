"""The store: jobs in Redis, and the way to their payloads. Who may work on what is the ledger's."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import redis

from common.errors import ModelError, StorageError, UnknownJob
from common.jobs import JOB_ID, Job, JobSpec, decode_job
from common.redis import keys
from common.redis.keys import JobKeys
from common.redis.schema import write_schema
from common.redis.scripts import Scripts
from common.storage.locations import MayOpen
from common.storage.storage import open_storage

if TYPE_CHECKING:  # they bring pyarrow, which who looks at jobs does not need
    from common.payloads.job_payloads import JobPayloads
    from common.payloads.output_committer import OutputCommitter

#: Jobs looked up in one round trip.
_PAGE = 100


class JobStore:
    """Reads and writes jobs, and opens their payloads."""

    def __init__(self, client: "redis.Redis", result_ttl: float, may_open: MayOpen = lambda _: False) -> None:
        """Take a connection, how long finished jobs are kept in seconds, and which addresses may be opened."""
        self.client = client
        self._may_open = may_open
        self._scripts = Scripts(client)
        self._ttl_ms = int(result_ttl * 1000)

    # Jobs

    def create(self, spec: JobSpec, key: str | None = None) -> str:
        """Begin a job: status `submitting`, no chunk yet; return its id.

        Args:
            spec: the job.
            key: its idempotency key: of all jobs with that key only one is begun, and its id returned. A job that was
                cut off before it was accepted, and that a reaper has failed since, gives the key up.

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
            UnknownJob: there is none of that id, or no longer.
        """
        raw = self.client.hgetall(JobKeys.of(job_id).job)
        try:
            job = decode_job(raw)
        except (ValueError, RecursionError) as error:
            raise UnknownJob(job_id) from error
        if job.id != job_id:  # written by hand: its work would be another job's
            raise UnknownJob(job_id)
        return job

    def exists(self, job_id: str) -> bool:
        """Return whether anything is kept under that id, be it readable or not."""
        return bool(self.client.exists(JobKeys.of(job_id).job))

    def newest(self) -> str | None:
        """Return the id of the job that was submitted last."""
        for job in self.each_job():
            return job.id
        return None

    def ids_with_prefix(self, prefix: str) -> list[str]:
        """Return the ids of the jobs there are that begin so, the newest first."""
        ids = [member.decode(errors="replace") for member in self.client.zrevrange(keys.JOBS, 0, -1)]
        return [job_id for job_id in ids if job_id.startswith(prefix) and self.exists(job_id)]

    def each_job(self) -> Iterator[Job]:
        """Yield all jobs, the newest first, looked up as they are asked for; forget those whose time is over."""
        ids = [member.decode(errors="replace") for member in self.client.zrevrange(keys.JOBS, 0, -1)]
        for start in range(0, len(ids), _PAGE):
            yield from self._page(ids[start : start + _PAGE])

    def _page(self, ids: list[str]) -> Iterator[Job]:
        with self.client.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hgetall(JobKeys.of(job_id).job)
            answers = pipe.execute(raise_on_error=False)
        gone = [job_id for job_id, raw in zip(ids, answers, strict=True) if not raw]
        if gone:
            self.client.zrem(keys.JOBS, *gone)
        for job_id, raw in zip(ids, answers, strict=True):
            try:
                job = decode_job(raw) if raw and isinstance(raw, dict) else None
            except (ValueError, RecursionError):
                continue  # written by hand or by another version: not ours to show
            if job is not None and job.id == job_id:
                yield job

    def active(self) -> list[str]:
        """Return the ids of unfinished jobs."""
        return sorted(member.decode(errors="replace") for member in self.client.smembers(keys.ACTIVE))

    def active_pages(self, size: int) -> Iterator[list[str]]:
        """Yield the ids of unfinished jobs, about so many at a time; one that comes meanwhile may be left out."""
        cursor = None
        while cursor != 0:
            cursor, members = self.client.sscan(keys.ACTIVE, cursor or 0, count=size)
            yield [member.decode(errors="replace") for member in members]

    def due(self) -> list[str]:
        """Return the ids of unfinished jobs to which something may have happened, by Redis's clock."""
        found = self.client.zrangebyscore(keys.DUE, "-inf", self.now())
        return [member.decode(errors="replace") for member in found]

    def delete(self, job_id: str, *, unfinished: bool = True) -> str:
        """Delete a job and all that belongs to it; Redis does that even when it is full.

        Args:
            job_id: the job.
            unfinished: whether it may be unfinished; whoever works on it finds that it is gone.

        Returns:
            `deleted`; `unknown`; or the status that prevents it.
        """
        parts = self._parts_of(job_id)
        answer = str(self._scripts.run("delete", job_id, int(unfinished)).decode())
        if answer == "deleted":
            with contextlib.suppress(StorageError):  # the reaper removes what this process cannot, or may not
                self.remove_files(job_id)
                if parts is not None:
                    parts.forget()
        return answer

    def note(self, job_id: str, field: str, value: str) -> None:
        """Write one word about a job: its `stage`, or when its producer was last seen."""
        self._scripts.write(job_id, "job", field, value)

    def now(self) -> float:
        """Return Redis's clock, in seconds: the only clock that all sides share."""
        seconds, micros = cast("tuple[int, int]", self.client.time())
        return seconds + micros / 1e6

    # Payloads

    def payloads(self, spec: JobSpec) -> "JobPayloads":
        """Return the payloads of a job.

        Raises:
            ModelError: `address_not_allowed`, the job names a place that this process may not open.
        """
        from common.payloads.job_payloads import JobPayloads

        return JobPayloads(self.client, self._scripts, spec, self._may_open)

    def orphaned_files(self, cursor: int, count: int) -> tuple[int, list[str]]:
        """Return jobs that are there no longer, but their files are: of about `count` jobs, and where to go on.

        Begin with the cursor 0; with 0 all are through.
        """
        cursor, stored = self.client.hscan(keys.STORED, cursor, count=count)
        ids = [job_id for raw_id in stored if JOB_ID.match(job_id := raw_id.decode(errors="replace"))]
        with self.client.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.exists(JobKeys.of(job_id).job)
            return cursor, [job_id for job_id, found in zip(ids, pipe.execute(), strict=True) if not found]

    def _parts_of(self, job_id: str) -> "OutputCommitter | None":
        """Return the parts of a job that workers write, where this process may open them."""
        try:
            return self.payloads(self.job(job_id).spec).parts
        except (UnknownJob, ModelError, StorageError):
            return None

    def remove_files(self, job_id: str) -> bool:
        """Remove the files of a job, if this process may open their place; return whether there were any.

        Raises:
            StorageError: they cannot be removed now.
        """
        address = (self.client.hget(keys.STORED, job_id) or b"").decode(errors="replace")
        if not address or not self._may_open(address):
            return False
        open_storage(address, job_id).remove_all()
        self.client.hdel(keys.STORED, job_id)
        return True
