"""The ledger: who works on which chunk, and which chunks are done. Celery carries turns; this keeps the work.

A *ticket* names a job. Whoever takes it leases the job's next open chunk. A chunk is open, leased or committed. A lease
is a key with a time to live, by Redis's own clock, so that wrong clocks of workers do no harm. A commit counts if it is
the first of its chunk in its round; everything else changes nothing. Each step is one script: Redis runs it whole
or not at all.

The same cut as Temporal's activity leases, Faktory's reservations and Oban's producers: see docs/reliability.md.
"""

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from common.errors import NotSubmitting, UnknownJob, UsageError
from common.payloads.backends import Version, decode_versions
from common.records import Counts, Failure, Json
from common.redis.keys import JobKeys
from common.redis.scripts import Scripts
from common.text import replace_control_chars

#: Tickets a job has at least: enough for one worker to be at it with all its slots.
MIN_TICKETS = 6
#: And at most, whatever heartbeats say: these are written by whoever can write to Redis.
MAX_TICKETS = 10_000
#: Members that are no text, which somebody else must have written, go through unchanged.
_ANY_BYTES = "surrogateescape"
#: Chunks whose commits one script forgets.
_AT_ONCE = 1000
#: What the retry script says when another retry came in between.
_ANOTHER_ROUND = -2


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on a chunk, as long as it is renewed."""

    job_id: str
    chunk: int
    round: int
    attempt: int  #: one more than the leases of this round whose workers died before they brought the chunk forward
    serial: int  #: from 1; how often it was leased in this round: no two leases have the same
    holder: str  #: unique for each lease
    next_ticket: str | None  #: a ticket that the holder has to send on
    tries: int = 0  #: how often the chunk was given back in this round for a fault that may pass

    @property
    def version(self) -> tuple[int, int]:
        """(round, serial): under what the outcomes are written."""
        return self.round, self.serial


@dataclass(frozen=True, slots=True)
class ReapReport:
    """What a look after a job found."""

    status: str  #: `unknown`: there is none
    opened: list[int]  #: chunks whose lease had run out
    recovered: list[int]  #: chunks that had got lost: a key of the job was deleted
    open: int  #: how many chunks nobody works on
    output_uncommitted: bool  #: all is done but to note that the output is complete
    producer_seen: str  #: when, by Redis's clock
    tickets: set[str]  #: those that count

    @classmethod
    def of(cls, answer: Sequence[Any]) -> "ReapReport":
        """Return what the script answered."""
        status, opened, recovered, open_chunks, uncommitted, seen, tickets = answer
        names = {ticket.decode(errors=_ANY_BYTES) for ticket in tickets}
        return cls(status.decode(), opened, recovered, open_chunks, bool(uncommitted), seen.decode(), names)


class Ledger:
    """The steps of a job's work, each of them atomic."""

    def __init__(self, client: "redis.Redis", lease: float) -> None:
        self.client = client
        self._lease_ms = int(lease * 1000)
        self._scripts = Scripts(client)

    def accept(self, job_id: str, chunks: int, records: int) -> None:
        """Accept a job: from here on it is run.

        Raises:
            NotSubmitting: it is no longer being submitted (it was cancelled, or abandoned).
        """
        answer = self._run("accept", job_id, chunks, records).decode()
        if answer != "queued":
            raise NotSubmitting(job_id, answer)

    def issue_tickets(self, job_id: str, most: int) -> list[str]:
        """Return ids of new tickets to send, so that the job has up to `most`, none if it has them."""
        ids = [str(uuid.uuid4()) for _ in range(min(most, MAX_TICKETS))]
        return [ticket.decode() for ticket in self._run("issue_tickets", job_id, most, *ids)]

    def tickets(self, job_id: str) -> set[str]:
        """Return the ids of the tickets that count."""
        return {ticket.decode(errors=_ANY_BYTES) for ticket in self.client.smembers(JobKeys.of(job_id).tickets)}

    def has_ticket(self, job_id: str, ticket: str) -> bool:
        """Return whether a ticket counts."""
        return bool(self.client.sismember(JobKeys.of(job_id).tickets, ticket))

    def void_tickets(self, job_id: str, tickets: Sequence[str]) -> None:
        """Strike lost tickets off the list."""
        if tickets:
            names = (ticket.encode(errors=_ANY_BYTES) for ticket in tickets)
            self.client.srem(JobKeys.of(job_id).tickets, *names)

    def lease(
        self, job_id: str, ticket: str, worker: str, most_tickets: int, *, call: uuid.UUID | None = None
    ) -> Lease | None:
        """Return a lease on the job's next open chunk; None if the ticket is void or nothing is open.

        Args:
            job_id: the job.
            ticket: what gives the right to a turn.
            worker: who takes it.
            most_tickets: how many tickets the job keeps.
            call: a name for this call; made again under it, the call gives the lease whose answer was lost.
        """
        call = call or uuid.uuid4()
        holder, following = f"{worker}/{call.hex}", str(uuid.uuid5(call, "next ticket"))
        answer = self._run("lease", job_id, ticket, holder, self._lease_ms, following, most_tickets)
        if not answer:
            return None
        chunk, attempt, round_, more, serial, tries = answer
        return Lease(job_id, chunk, round_, attempt, serial, holder, following if more else None, tries)

    def renew(self, lease: Lease) -> str:
        """Keep a lease; return the status of its job, or `lost` if the chunk is someone else's now."""
        return str(self._run("renew", lease.job_id, lease.chunk, lease.holder, self._lease_ms, lease.round).decode())

    def commit(self, lease: Lease, counts: Counts, run_info: Mapping[str, Json], max_failed: int | None = None) -> str:
        """Mark a chunk as done, its outcomes being written; return `committed`, or why it was not.

        Args:
            lease: of the chunk.
            counts: its records by outcome.
            facts: what ran them.
            max_failed: with more failed records than that in one round, the job ends early.
        """
        numbers = (counts.succeeded, counts.failed, counts.truncated)
        limit = () if max_failed is None else (max_failed,)
        answer = self._run("commit", lease.job_id, lease.chunk, *lease.version, *numbers, json.dumps(run_info), *limit)
        return str(answer.decode())

    def note_isolated(self, lease: Lease, *, done: int | None, now: int | None, kept: int) -> None:
        """Note which record of a chunk has got past running alone, and which is about to run so.

        Args:
            lease: of the chunk.
            done: the position that the worker has survived; the first time it is a step forward.
            now: the position that is blamed if the worker dies, until it is given back or another one is noted.
            kept: how many earlier deaths a step forward leaves counted: so many keep the chunk cautious.
        """
        positions = ("" if position is None else position for position in (done, now))
        self._run("note_isolated", lease.job_id, lease.chunk, lease.holder, *positions, kept)

    def isolated_deaths(self, lease: Lease) -> list[int]:
        """Return the positions that ran alone when workers died over this chunk, one for each death of this round."""
        raw = self.client.hget(JobKeys.of(lease.job_id).attempts, f"{lease.chunk}:isolated_deaths")
        return [int(position) for position in (raw or b"").split() if position.isdigit()]

    def advance(self, lease: Lease, steps: int) -> bool:
        """Note that a train chunk can go on from `steps` whatever happens; return whether that is further than before.

        The lease is not held against the chunk then: a job that trains for days may outlive many workers.
        """
        return bool(self._run("advance", lease.job_id, lease.chunk, lease.holder, steps))

    def refuse(self, job_id: str, worker: str, reason: str) -> set[str]:
        """Note that a worker cannot serve the job; return the names of all that cannot."""
        self._scripts.write(job_id, "refusals", worker, replace_control_chars(reason))
        return {name.decode() for name in self.client.hkeys(JobKeys.of(job_id).refusals)}

    def serve(self, job_id: str, worker: str) -> None:
        """Take a refusal back."""
        self.client.hdel(JobKeys.of(job_id).refusals, worker)

    def release_chunk(self, lease: Lease, *, delay: float | None = None) -> None:
        """Open a chunk again; after a transient fault only in `delay` seconds, and the retry is counted."""
        self._run("release_chunk", lease.job_id, lease.chunk, lease.holder, *(() if delay is None else (delay,)))

    def cancel(self, job_id: str) -> str:
        """Stop a job; return its status.

        Raises:
            UnknownJob: there is none of that id.
        """
        status = str(self._run("cancel", job_id).decode())
        if status == "unknown":
            raise UnknownJob(job_id)
        return status

    def is_committed(self, job_id: str, chunk: int) -> bool:
        """Return whether a chunk is done in the job's present round."""
        return bool(self.client.hexists(JobKeys.of(job_id).commits, str(chunk)))

    def uncommitted_output(self, job_id: str) -> dict[int, list[Version]]:
        """Return the versions of each chunk's commits, of a job that lacks nothing but to say that its files are there.

        Of any other job nothing is returned; of a chunk whose list of them is lost, none.

        Raises:
            PayloadError: a list of commits is broken.
        """
        found = self._run("uncommitted_output", job_id)
        return {int(chunk): decode_versions(raw) for chunk, raw in zip(found[::2], found[1::2], strict=True)}

    def committed(self, job_id: str) -> dict[int, list[Version]]:
        """Return the versions of each chunk's commits, of all rounds; of one whose list of them is lost, none."""
        commit_history = self.client.hgetall(JobKeys.of(job_id).commit_history)
        commits: dict[int, list[Version]] = {int(chunk): [] for chunk in self.client.hkeys(JobKeys.of(job_id).commits)}
        return commits | {int(chunk): decode_versions(raw) for chunk, raw in commit_history.items()}

    def forget_commits(self, job_id: str, round_: int | bytes, chunks: Sequence[int]) -> None:
        """Forget what was committed of chunks whose outcomes are lost, and open them; in another round, do nothing."""
        for first in range(0, len(chunks), _AT_ONCE):
            self._run("forget_commits", job_id, round_, *chunks[first : first + _AT_ONCE])

    def failures_by_chunk(self, job_id: str) -> dict[int, int]:
        """Return how many records of a chunk failed, for the chunks where any did."""
        return {
            int(chunk): int(failed) for chunk, failed in self.client.hgetall(JobKeys.of(job_id).failed_counts).items()
        }

    def note_output_committed(self, job_id: str, round_: int) -> bool:
        """Note that the files of a job are all there, which completes it; return whether it was not noted before."""
        return bool(self._run("note_output_committed", job_id, round_))

    def fail(self, job_id: str, failure: Failure) -> bool:
        """End a job early and keep what is done; return whether it was not over before."""
        return bool(self._run("fail", job_id, failure.code, replace_control_chars(failure.message)))

    def retry(self, job_id: str, lost: Callable[[], Sequence[int]] = tuple) -> int:
        """Open a new round over all that failed, never ended or is lost; return how many chunks are open.

        A job that was ended when all its chunks were committed is completed instead, or running until its output is.

        Args:
            job_id: the job.
            lost: gives the chunks whose outcomes are gone.

        Raises:
            UnknownJob: there is none of that id.
            UsageError: the job is not finished, or was never accepted.
        """
        open_chunks = _ANOTHER_ROUND
        while open_chunks == _ANOTHER_ROUND:
            round_ = self._reopen(job_id)
            self.forget_commits(job_id, round_, lost())
            before, open_chunks = self._run("retry", job_id, uuid.uuid4().hex, round_)
        status = before.decode()
        if status == "unknown":
            raise UnknownJob(job_id)
        if open_chunks < 0:
            reason = "was never accepted; submit it again" if status in ("failed", "cancelled") else f"is {status}"
            raise UsageError(f"Job {job_id} cannot be retried: it {reason}.")
        return int(open_chunks)

    def _reopen(self, job_id: str) -> bytes:
        """Open all chunks with failed records, some at a time, for a retry; return the round in which they failed."""
        cursor: bytes | int = 0
        while True:
            cursor, round_ = self._run("reopen_failed", job_id, cursor)
            if cursor == b"0":
                return bytes(round_)

    def reap_jobs(self, job_ids: Sequence[str], *, judging: bool = True) -> "list[ReapReport | redis.RedisError]":
        """Do what is due for these jobs, and return what a reaper has to know of each; an error stands for its own job.

        Args:
            job_ids: the jobs.
            judging: whether a lease that is not there was lost.
        """
        answers = self._scripts.run_each("reap", job_ids, self._lease_ms, int(judging))
        return [answer if isinstance(answer, redis.RedisError) else ReapReport.of(answer) for answer in answers]

    def abandon(self, job_id: str, producer_seen: str | float) -> bool:
        """Fail a job that was not accepted and whose producer was last seen then; return whether that is so."""
        return bool(self._run("abandon", job_id, producer_seen))

    def _run(self, script: str, job_id: str, *args: Any) -> Any:
        return self._scripts.run(script, job_id, *args)
