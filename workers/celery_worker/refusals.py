"""Jobs that this worker cannot serve for now; it passes them over for a while."""

import random
import time

from common.queue.ledger import Lease, Ledger

#: Seconds to pass over a job before trying it again: another model may have left the memory by then.
REFUSAL_SECONDS = 60.0


class Refusals:
    """What one worker has refused; also noted with the job, so that all can see when nobody is left."""

    def __init__(self, ledger: Ledger, worker: str) -> None:
        self._ledger = ledger
        self._worker = worker
        self._until: dict[tuple[str, int], float] = {}  #: by job and round: a retry is tried at once
        self._refused: set[str] = set()

    def pause(self, lease: Lease) -> float:
        """Pass over the job of a lease for a moment after a fault that may pass; return for how many seconds.

        Longer after each try, and not in step with others.
        """
        seconds = min(REFUSAL_SECONDS, 2.0 ** (lease.tries + 1)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        self._skip_for(lease, seconds)
        return seconds

    def add(self, lease: Lease, reason: str) -> set[str]:
        """Pass over the job of a lease from now on; return the names of all workers that have refused it."""
        self._skip_for(lease, REFUSAL_SECONDS)
        self._refused.add(lease.job_id)
        return self._ledger.refuse(lease.job_id, self._worker, reason)

    def withdraw(self, job_id: str) -> None:
        """Take a refusal back: the worker is at the job again."""
        if job_id in self._refused:
            self._ledger.serve(job_id, self._worker)
            self._refused.discard(job_id)

    def _skip_for(self, lease: Lease, seconds: float) -> None:
        now = time.monotonic()
        kept = {key: until for key, until in self._until.items() if until > now}
        self._until = kept | {(lease.job_id, lease.round): now + seconds}

    def is_skipped(self, job_id: str, round_: int) -> bool:
        """Whether the job is passed over at present."""
        return self._until.get((job_id, round_), 0.0) > time.monotonic()
