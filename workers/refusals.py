"""Jobs that this worker cannot serve for now; it passes them over for a while."""

import time

import redis

from common.keys import JobKeys

#: Seconds to pass over a job before trying it again: another model may have left the memory by then.
FOR = 60.0


class Refusals:
    """What one worker has refused; also noted with the job, so that all can see when nobody is left."""

    def __init__(self, client: "redis.Redis", worker: str) -> None:
        self._client = client
        self._worker = worker
        self._until: dict[str, float] = {}

    def add(self, job_id: str, reason: str) -> set[str]:
        """Pass over the job from now on; return the names of all workers that have refused it."""
        self._until = {job: until for job, until in self._until.items() if until > time.monotonic()}
        self._until[job_id] = time.monotonic() + FOR
        key = JobKeys.of(job_id).refusals
        self._client.hset(key, self._worker, reason)
        return {name.decode() for name in self._client.hkeys(key)}

    def holds(self, job_id: str) -> bool:
        """Whether the job is passed over at present."""
        return self._until.get(job_id, 0.0) > time.monotonic()
