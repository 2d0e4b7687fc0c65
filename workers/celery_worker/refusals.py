"""Jobs that this worker cannot serve for now, and skips for a while."""

import random
import time

from common.queue.ledger import Lease, Ledger

#: Seconds for which a refused job is skipped: another model may have been evicted by then.
REFUSAL_SECONDS = 60.0


class Refusals:
    """The jobs one worker has refused. Also noted with each job, so that all workers see when none is left."""

    def __init__(self, ledger: Ledger, worker: str) -> None:
        self._ledger = ledger
        self._worker = worker
        self._until: dict[tuple[str, int], float] = {}  #: by job and round: a retry is tried at once
        self._refused: set[str] = set()

    def pause(self, lease: Lease) -> float:
        """Skip the job of a lease for a while after a transient fault; return for how many seconds.

        The pause grows with each try, with jitter.
        """
        seconds = min(REFUSAL_SECONDS, 2.0 ** (lease.tries + 1)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        self._skip_for(lease, seconds)
        return seconds

    def refuse(self, lease: Lease, reason: str) -> set[str]:
        """Refuse the job of a lease; return the names of all workers that have refused it."""
        self._skip_for(lease, REFUSAL_SECONDS)
        self._refused.add(lease.job_id)
        return self._ledger.refuse(lease.job_id, self._worker, reason)

    def withdraw(self, job_id: str) -> None:
        """Withdraw a refusal: the worker runs the job again."""
        if job_id in self._refused:
            self._ledger.withdraw_refusal(job_id, self._worker)
            self._refused.discard(job_id)

    def _skip_for(self, lease: Lease, seconds: float) -> None:
        now = time.monotonic()
        kept = {key: until for key, until in self._until.items() if until > now}
        self._until = kept | {(lease.job_id, lease.round): now + seconds}

    def is_skipped(self, job_id: str, round_: int) -> bool:
        """Whether the job is skipped at present."""
        return self._until.get((job_id, round_), 0.0) > time.monotonic()
