"""The store: jobs and their payloads in Redis. Who may work on what is the ledger's (`common.ledger`)."""

from collections.abc import Iterator
from typing import cast

import redis

from common import keys
from common.claims import Written
from common.errors import JobTaken, NotSubmitting, PayloadError, UnknownJob
from common.jobs import Job, decode_job
from common.keys import JobKeys
from common.scripts import Scripts
from common.values import JobSpec, JobStatus

#: Jobs looked up in one round trip.
_PAGE = 100


class Store:
    """Reads and writes jobs and payloads."""

    def __init__(self, client: "redis.Redis", result_ttl: float) -> None:
        self.client = client
        self._scripts = Scripts(client)
        self._ttl_ms = int(result_ttl * 1000)

    # Jobs

    def create(self, spec: JobSpec) -> None:
        """Begin a job: status `submitting`, no chunk yet.

        Raises:
            redis.RedisError: Redis is away or full.
        """
        job = {
            "spec": spec.encode(),
            "status": str(JobStatus.SUBMITTING),
            "ttl_ms": self._ttl_ms,
            "round": 0,
            "producer_seen": self.now(),
        }
        with self.client.pipeline(transaction=True) as pipe:
            pipe.hset(JobKeys.of(spec.id).job, mapping=job)
            pipe.sadd(keys.ACTIVE, spec.id)
            pipe.zadd(keys.JOBS, {spec.id: spec.created_at})
            pipe.execute()

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

    def delete(self, job_id: str, *, unfinished: bool = True, producer: str = "") -> str:
        """Forget a job and all that belongs to it; Redis does that even when it is full.

        Args:
            job_id: the job.
            unfinished: whether it may be unfinished; whoever works on it finds that it is gone.
            producer: who submits it at present, if it must be this one (`common.claims`).

        Returns:
            `deleted`; `unknown`; or why not: the status it has, or `taken`.
        """
        return str(self._scripts.run("delete", job_id, int(unfinished), producer).decode())

    def note(self, job_id: str, field: str, value: str) -> None:
        """Write one word about a job: its `stage`, or when its producer was last seen."""
        self._scripts.write(job_id, "job", field, value)

    def now(self) -> float:
        """Return Redis's clock, in seconds: the only clock that all sides share."""
        seconds, micros = cast("tuple[int, int]", self.client.time())
        return seconds + micros / 1e6

    # Payloads

    def add_chunk(
        self, job_id: str, chunk: int, payload: bytes, producer: str = "", written: Written | None = None
    ) -> None:
        """Write the records of a chunk, and that the producer lives.

        Args:
            job_id: a job that is being submitted.
            chunk: its number, from 0.
            payload: its records.
            producer: the token of who submits it, where there is one (`common.claims`).
            written: how far the job is with this chunk, which is noted with it.

        Raises:
            redis.RedisError: Redis is away or full.
            JobTaken: another producer has taken over since.
            NotSubmitting: the job was given up, cancelled or deleted meanwhile.
        """
        self._append(job_id, str(chunk), payload, producer, written)

    def records(self, job_id: str, chunk: int) -> bytes | None:
        """Return the payload of a chunk's records, or None where there is none."""
        return cast("bytes | None", self.client.hget(JobKeys.of(job_id).input, str(chunk)))

    def add_examples(self, job_id: str, part: str, number: int, payload: bytes) -> None:
        """Write examples that a fine-tune job learns from (`train`) or is judged by (`eval`).

        Raises:
            redis.RedisError: Redis is away or full.
            NotSubmitting: the job was given up, cancelled or deleted meanwhile.
        """
        self._append(job_id, f"{part}:{number}", payload)

    def _append(
        self, job_id: str, field: str, payload: bytes, producer: str = "", written: Written | None = None
    ) -> None:
        progress = [part for pair in (written.fields().items() if written else ()) for part in pair]
        answer = self._scripts.run("append", job_id, producer, field, payload, *progress).decode()
        if answer == "taken":
            raise JobTaken(job_id)
        if answer != "written":
            raise NotSubmitting(job_id, answer)

    def examples(self, job_id: str, part: str, number: int) -> bytes | None:
        """Return a payload of examples, or None where there is none."""
        return cast("bytes | None", self.client.hget(JobKeys.of(job_id).input, f"{part}:{number}"))

    def put_outcomes(self, job_id: str, chunk: int, attempt: tuple[int, int], payload: bytes) -> None:
        """Write a chunk's outcomes under (round, attempt); they count once the ledger has the commit.

        Of a job that has ended nothing is written.
        """
        self._scripts.write(job_id, "output", outcome_field(chunk, attempt), payload)

    def drop_outcomes(self, job_id: str, chunk: int, attempt: tuple[int, int]) -> None:
        """Take back outcomes whose commit was refused."""
        self.client.hdel(JobKeys.of(job_id).output, outcome_field(chunk, attempt))

    def layers(self, job_id: str, chunk: int) -> list[tuple[int, int]]:
        """Return (round, attempt) of every commit of a chunk, the oldest first."""
        return decode_layers(self.client.hget(JobKeys.of(job_id).layers, str(chunk)))

    def outcomes(self, job_id: str, chunk: int) -> list[bytes]:
        """Return the payloads of every commit of a chunk, the oldest first: later ones lie over earlier ones."""
        fields = [outcome_field(chunk, layer) for layer in self.layers(job_id, chunk)]
        if not fields:
            return []
        return [payload for payload in self.client.hmget(JobKeys.of(job_id).output, fields) if payload is not None]


def outcome_field(chunk: int, attempt: tuple[int, int]) -> str:
    """Return the field of a chunk's outcomes; `attempt` is (round, attempt)."""
    return f"{chunk}:{attempt[0]}:{attempt[1]}"


def decode_layers(raw: bytes | None) -> list[tuple[int, int]]:
    """Return the (round, attempt) pairs that the commit script wrote.

    Raises:
        PayloadError: it did not write this.
    """
    try:
        pairs = (item.split(":") for item in (raw or b"").decode().split())
        return [(int(a), int(b)) for a, b in pairs]
    except ValueError as error:
        raise PayloadError(f"not a list of commits: {raw!r:.100}") from error
