"""The ledger: which worker has leased which chunk, and which chunks are done.

Celery only carries *tickets*. A ticket names a job, and the worker that receives it leases the job's next open chunk. A
chunk is open, delayed, leased or committed. A lease is a key with a time to live by Redis's own clock, so that wrong
clocks of workers do no harm. The first commit of a chunk in a round counts; any other changes nothing. Each step is one
Lua script, which Redis runs atomically.
"""

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from common.display_text import one_line, replace_control_chars
from common.errors import NotSubmitting, UnknownJob, UsageError
from common.payloads.backends import Version, decode_versions
from common.queue.totals import failed_by_code
from common.records import Counts, Failure, Json
from common.redis.keys import JobKeys
from common.redis.scripts import Scripts
from common.vector_ranges import NotedRanges

#: Tickets that a job has at least: enough for all slots of one worker.
MIN_TICKETS = 6
#: And at most, whatever the heartbeats say: anybody who can write to Redis can write heartbeats.
MAX_TICKETS = 10_000
#: Members that are not UTF-8, which hugqueue never writes, pass through unchanged.
_ANY_BYTES = "surrogateescape"
#: Chunks whose commits one call of a script forgets.
_AT_ONCE = 1000
#: The retry script's answer when another retry came in between.
_ANOTHER_ROUND = -2
#: Its answer when a job that this one waits for has failed.
_AFTER_FAILED = -3


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on a chunk, as long as it is renewed."""

    job_id: str
    chunk: int
    round: int
    attempt: int  #: one more than the leases of this round whose workers died without progress
    number: int  #: of this lease in this round, from 1
    holder: str  #: unique for each lease
    next_ticket: str | None  #: a ticket that the holder is to send
    tries: int = 0  #: how often the chunk was released in this round after a transient fault

    @property
    def version(self) -> tuple[int, int]:
        """(round, lease number): the key under which the outcomes are written."""
        return self.round, self.number


@dataclass(frozen=True, slots=True)
class ReapReport:
    """The state of a job that a reaper has checked."""

    status: str  #: `unknown` if there is no such job
    opened: list[int]  #: chunks whose lease had expired
    recovered: list[int]  #: chunks that were on no list: a key of the job was deleted
    open: int  #: number of open chunks
    output_uncommitted: bool  #: whether only the commit of its output is missing
    producer_seen: str  #: when its producer was last seen, by Redis's clock
    tickets: set[str]  #: the valid ones

    @classmethod
    def of(cls, answer: Sequence[Any]) -> "ReapReport":
        """Return the report in the script's answer."""
        status, opened, recovered, open_chunks, uncommitted, seen, tickets = answer
        names = {ticket.decode(errors=_ANY_BYTES) for ticket in tickets}
        return cls(status.decode(), opened, recovered, open_chunks, bool(uncommitted), seen.decode(), names)


class Ledger:
    """The steps of a job's life, each of them atomic."""

    def __init__(self, client: "redis.Redis", lease_seconds: float) -> None:
        self.client = client
        self._lease_ms = int(lease_seconds * 1000)
        self._scripts = Scripts(client)

    def accept(self, job_id: str, chunks: int, records: int) -> None:
        """Accept a job: workers run it from here on, or once it need not wait for other jobs any more.

        Args:
            job_id: the job.
            chunks: how many it has.
            records: how many they hold together.

        Raises:
            NotSubmitting: it is no longer being submitted, because it was cancelled or abandoned.
        """
        answer = self._run("accept_job", job_id, chunks, records).decode()
        if answer != "accepted":
            raise NotSubmitting(job_id, answer)

    def issue_tickets(self, job_id: str, max_tickets: int) -> list[str]:
        """Return the ids of new tickets to send, so that the job has up to `max_tickets`."""
        ids = [str(uuid.uuid4()) for _ in range(min(max_tickets, MAX_TICKETS))]
        return [ticket.decode() for ticket in self._run("issue_tickets", job_id, max_tickets, *ids)]

    def tickets(self, job_id: str) -> set[str]:
        """Return the ids of a job's valid tickets."""
        return {ticket.decode(errors=_ANY_BYTES) for ticket in self.client.smembers(JobKeys.of(job_id).tickets)}

    def has_ticket(self, job_id: str, ticket: str) -> bool:
        """Whether a ticket is valid."""
        return bool(self.client.sismember(JobKeys.of(job_id).tickets, ticket))

    def void_tickets(self, job_id: str, tickets: Sequence[str]) -> None:
        """Make tickets invalid that were lost."""
        if tickets:
            names = (ticket.encode(errors=_ANY_BYTES) for ticket in tickets)
            self.client.srem(JobKeys.of(job_id).tickets, *names)

    def lease(
        self, job_id: str, ticket: str, worker: str, max_tickets: int, *, call: uuid.UUID | None = None
    ) -> Lease | None:
        """Return a lease on the job's next open chunk; None if the ticket is void or nothing is open.

        Args:
            job_id: the job.
            ticket: the id of the ticket that was received.
            worker: the name of the worker.
            max_tickets: how many tickets the job has at most.
            call: a name for this call; repeated under the same name, it returns the lease whose answer was lost.
        """
        call = call or uuid.uuid4()
        holder, following = f"{worker}/{call.hex}", str(uuid.uuid5(call, "next ticket"))
        answer = self._run("lease", job_id, ticket, holder, self._lease_ms, following, max_tickets)
        if not answer:
            return None
        chunk, attempt, round_, more, number, tries = answer
        return Lease(job_id, chunk, round_, attempt, number, holder, following if more else None, tries)

    def renew(self, lease: Lease) -> str:
        """Renew a lease; return the status of its job, or `lost` if another worker has leased the chunk."""
        return str(self._run("renew", lease.job_id, lease.chunk, lease.holder, self._lease_ms, lease.round).decode())

    def commit(
        self,
        lease: Lease,
        counts: Counts,
        run_info: Mapping[str, Json],
        max_failed: int | None = None,
        ranges_id: str | None = None,
        seconds: float = 0.0,
        codes: Mapping[str, int] | None = None,
    ) -> str:
        """Commit a chunk whose outcomes are written; return `committed`, or why not: `double`, `stale` or `closed`.

        Args:
            lease: of the chunk.
            counts: its records by outcome.
            run_info: what ran them: device, dtype, versions, model commit.
            max_failed: with more failed records than that in one round, the job fails.
            ranges_id: of the noted ranges that its vectors have; if others are noted by now, the chunk is `stale`.
            seconds: for which its device computed.
            codes: how many of the failed records have each error code.
        """
        numbers = (counts.succeeded, counts.failed, counts.truncated)
        limit = "" if max_failed is None else max_failed
        words = (json.dumps(run_info), limit, ranges_id or "", int(seconds * 1000))
        totals = failed_by_code(counts.failed, codes or {})
        return str(self._run("commit", lease.job_id, lease.chunk, *lease.version, *numbers, *words, *totals).decode())

    def noted_ranges(self, job_id: str) -> NotedRanges | None:
        """Return the ranges that were noted for a job's vectors, None if there are none.

        Raises:
            ValueError: what Redis holds is not ranges.
        """
        return _noted(self.client.hmget(JobKeys.of(job_id).job, "ranges_id", "ranges"))

    def note_ranges(self, job_id: str, noted: NotedRanges) -> NotedRanges | None:
        """Note the ranges of a job's vectors, unless there are some; return those that count, None if it has ended.

        Raises:
            ValueError: what Redis holds is not ranges.
        """
        return _noted(self._run("note_ranges", job_id, noted.id, noted.encode()))

    def is_leased(self, job_id: str, chunk: int) -> bool:
        """Whether a worker has leased a chunk, or had when it died and no reaper has noticed yet."""
        return bool(self.client.sismember(JobKeys.of(job_id).leased, str(chunk)))

    def note_isolated(self, lease: Lease, *, done: int | None, now: int | None, kept: int) -> None:
        """Note which isolated record of a chunk the worker survived, and which it runs next.

        Args:
            lease: of the chunk.
            done: the position that the worker has survived; the first time it counts as progress.
            now: the position to blame if the worker dies before the chunk is released or another one is noted.
            kept: how many earlier deaths stay counted after progress: this many keep its records isolated.
        """
        positions = ("" if position is None else position for position in (done, now))
        self._run("note_isolated", lease.job_id, lease.chunk, lease.holder, *positions, kept)

    def isolated_deaths(self, lease: Lease) -> list[int]:
        """Return the positions of isolated records over which workers died in this round, one for each death."""
        raw = self.client.hget(JobKeys.of(lease.job_id).attempts, f"{lease.chunk}:isolated_deaths")
        return [int(position) for position in (raw or b"").split() if position.isdigit()]

    def note_progress(self, lease: Lease, steps: int) -> bool:
        """Note that training can resume from step `steps`; return whether that is further than before.

        The lease does not count as a failed attempt then: a job that trains for days may outlive many workers.
        """
        return bool(self._run("note_progress", lease.job_id, lease.chunk, lease.holder, steps))

    def refuse(self, job_id: str, worker: str, reason: str) -> set[str]:
        """Note that a worker cannot run the job; return the names of all workers that cannot."""
        self._scripts.write(job_id, "refusals", worker, replace_control_chars(reason))
        return {name.decode() for name in self.client.hkeys(JobKeys.of(job_id).refusals)}

    def withdraw_refusal(self, job_id: str, worker: str) -> None:
        """Note that a worker can run the job after all."""
        self.client.hdel(JobKeys.of(job_id).refusals, worker)

    def release_chunk(self, lease: Lease, *, delay: float | None = None) -> None:
        """Open a chunk again; after a transient fault only in `delay` seconds, and the retry is counted."""
        self._run("release_chunk", lease.job_id, lease.chunk, lease.holder, *(() if delay is None else (delay,)))

    def cancel(self, job_id: str) -> str:
        """Stop a job; return its status.

        Raises:
            UnknownJob: there is no such job.
        """
        status = str(self._run("cancel", job_id).decode())
        if status == "unknown":
            raise UnknownJob(job_id)
        return status

    def is_committed(self, job_id: str, chunk: int) -> bool:
        """Whether a chunk is committed in the job's present round."""
        return bool(self.client.hexists(JobKeys.of(job_id).commits, str(chunk)))

    def uncommitted_output(self, job_id: str) -> dict[int, list[Version]]:
        """Return the versions of each chunk's commits, of a job that only lacks the commit of its output.

        Returns nothing for any other job, and no version for a chunk whose commit history is lost.

        Raises:
            PayloadError: a list of commits is broken.
        """
        found = self._run("uncommitted_output", job_id)
        return {int(chunk): decode_versions(raw) for chunk, raw in zip(found[::2], found[1::2], strict=True)}

    def committed(self, job_id: str) -> dict[int, list[Version]]:
        """Return the versions of each chunk's commits, of all rounds; none for a chunk whose commit history is lost."""
        commit_history = self.client.hgetall(JobKeys.of(job_id).commit_history)
        commits: dict[int, list[Version]] = {int(chunk): [] for chunk in self.client.hkeys(JobKeys.of(job_id).commits)}
        return commits | {int(chunk): decode_versions(raw) for chunk, raw in commit_history.items()}

    def forget_commits(self, job_id: str, round_: int | bytes, chunks: Sequence[int]) -> None:
        """Open chunks again whose outcomes are lost; do nothing if the job is in another round by now."""
        for first in range(0, len(chunks), _AT_ONCE):
            self._run("forget_commits", job_id, round_, *chunks[first : first + _AT_ONCE])

    def failures_by_chunk(self, job_id: str) -> dict[int, int]:
        """Return the number of failed records of each chunk that has any."""
        counts = self.client.hgetall(JobKeys.of(job_id).failed_counts)
        return {int(chunk): int(failed) for chunk, failed in counts.items()}

    def note_output_committed(self, job_id: str, round_: int) -> bool:
        """Note that the output of a job is complete, which completes the job; return whether this call did it."""
        return bool(self._run("note_output_committed", job_id, round_))

    def fail(self, job_id: str, failure: Failure) -> bool:
        """Fail a job and keep what is done; return whether this call did it."""
        return bool(self._run("fail", job_id, failure.code, replace_control_chars(failure.message)))

    def retry(self, job_id: str, lost: Callable[[], Sequence[int]] = tuple) -> int:
        """Begin a new round over all chunks that failed, never finished or are lost; return how many are open.

        A job that had failed or was cancelled with all its chunks committed is completed instead, or running until
        its output is committed.

        Args:
            job_id: the job.
            lost: returns the chunks whose outcomes are lost.

        Raises:
            UnknownJob: there is no such job.
            UsageError: the job is not finished or was never accepted; or it never ran because a job that it waits for
                failed, and that has not changed.
        """
        open_chunks = _ANOTHER_ROUND
        while open_chunks == _ANOTHER_ROUND:
            round_ = self._reopen(job_id)
            self.forget_commits(job_id, round_, lost())
            before, open_chunks = self._run("retry", job_id, uuid.uuid4().hex, round_)
        status = before.decode()
        if status == "unknown":
            raise UnknownJob(job_id)
        if open_chunks == _AFTER_FAILED:
            raise UsageError(f"Job {job_id} cannot be retried before the job that it waits for: {one_line(status)}")
        if open_chunks < 0:
            reason = "was never accepted; submit it again" if status in ("failed", "cancelled") else f"is {status}"
            raise UsageError(f"Job {job_id} cannot be retried: it {reason}.")
        return int(open_chunks)

    def _reopen(self, job_id: str) -> bytes:
        """Open all chunks with failed records, a page at a time, for a retry; return the round in which they failed."""
        cursor: bytes | int = 0
        while True:
            cursor, round_ = self._run("reopen_failed", job_id, cursor)
            if cursor == b"0":
                return bytes(round_)

    def reap_jobs(self, job_ids: Sequence[str], *, judging: bool = True) -> "list[ReapReport | redis.RedisError]":
        """Open chunks with expired leases and finish what is over; return a report for each job, or its error.

        Args:
            job_ids: the jobs.
            judging: whether a missing lease has expired; False soon after a restart of Redis.
        """
        answers = self._scripts.run_each("reap", job_ids, self._lease_ms, int(judging))
        return [answer if isinstance(answer, redis.RedisError) else ReapReport.of(answer) for answer in answers]

    def abandon(self, job_id: str, producer_seen: str | float) -> bool:
        """Fail a job that is not accepted and whose producer was last seen then; return whether this call did it."""
        return bool(self._run("abandon_job", job_id, producer_seen))

    def _run(self, script: str, job_id: str, *args: Any) -> Any:
        return self._scripts.run(script, job_id, *args)


def _noted(answer: Sequence[bytes | None]) -> NotedRanges | None:
    id_, text = answer or (None, None)
    return NotedRanges.decode(id_.decode(), text.decode()) if id_ and text else None
