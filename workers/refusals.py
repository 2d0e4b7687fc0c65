"""Jobs that this worker cannot serve for now; it passes them over for a while."""

import random
import time

from common.ledger import Ledger

#: Seconds to pass over a job before trying it again: another model may have left the memory by then.
FOR = 60.0


class Refusals:
    """What one worker has refused; also noted with the job, so that all can see when nobody is left."""

    def __init__(self, ledger: Ledger, worker: str) -> None:
        self._ledger = ledger
        self._worker = worker
        self._until: dict[str, float] = {}
        self._refused: set[str] = set()

    def pause(self, job_id: str, tries: int) -> float:
        """Pass over the job for a moment after a fault that may pass; return for how many seconds.

        Longer after each of the `tries`, and not in step with others.
        """
        seconds = min(FOR, 2.0**tries) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        self._hold(job_id, seconds)
        return seconds

    def add(self, job_id: str, reason: str) -> set[str]:
        """Pass over the job from now on; return the names of all workers that have refused it."""
        self._hold(job_id, FOR)
        self._refused.add(job_id)
        return self._ledger.refuse(job_id, self._worker, reason)

    def lift(self, job_id: str) -> None:
        """Take a refusal back: the worker is at the job again."""
        if job_id in self._refused:
            self._ledger.serve(job_id, self._worker)
            self._refused.discard(job_id)

    def _hold(self, job_id: str, seconds: float) -> None:
        now = time.monotonic()
        self._until = {job: until for job, until in self._until.items() if until > now} | {job_id: now + seconds}

    def holds(self, job_id: str) -> bool:
        """Whether the job is passed over at present."""
        return self._until.get(job_id, 0.0) > time.monotonic()
