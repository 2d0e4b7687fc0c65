"""The scripts of `lua/`, each a step on one job that Redis runs whole or not at all."""

from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.resources import files
from typing import Any

import redis

from common.redis import keys
from common.redis.keys import JobKeys

#: How often Redis may be started again just between the sending of a script and its call.
_RESTARTS = 5


class Scripts:
    """Runs scripts by their names; sends each to Redis once."""

    def __init__(self, client: "redis.Redis") -> None:
        self._client = client
        self._known: dict[str, Any] = {}

    def run(self, script: str, job_id: str, *args: Any) -> Any:
        """Return what the script answers for that job.

        Raises:
            redis.RedisError: Redis is away or full, or the job's keys hold what they should not.
        """
        self._know(script)
        for _ in range(_RESTARTS):
            # redis-py sends a script that Redis does not know and calls it again, once.
            with suppress(redis.exceptions.NoScriptError):
                return self._known[script](keys=_keys_for(job_id), args=args)
        raise redis.ConnectionError(f"Redis forgets its scripts again and again: {script} was sent {_RESTARTS} times.")

    def run_each(self, script: str, job_ids: Sequence[str], *args: Any) -> "list[Any | redis.RedisError]":
        """Return what the script answers for each of these jobs, in one round trip; errors stand for their own job.

        Raises:
            redis.RedisError: Redis is away.
        """
        self._know(script)
        with self._client.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                self._known[script](keys=_keys_for(job_id), args=args, client=pipe)
            answers = pipe.execute(raise_on_error=False)
        return [
            self.run(script, job_id, *args) if isinstance(answer, redis.exceptions.NoScriptError) else answer
            for job_id, answer in zip(job_ids, answers, strict=True)
        ]

    def _know(self, script: str) -> None:
        if script not in self._known:
            self._known[script] = self._client.register_script(script_text(script))

    def write(self, job_id: str, hash_name: str, field: str, value: str | bytes) -> bool:
        """Write a field of one of the job's hashes, unless the job has ended; return whether it was written."""
        return bool(self.run("write_field", job_id, JobKeys.position(hash_name), field, value))


def _keys_for(job_id: str) -> list[str]:
    return [*JobKeys.of(job_id).all(), keys.ACTIVE, keys.JOBS, keys.DUE, keys.SCHEMA]


@cache
def script_text(name: str) -> str:
    """Return the text of a script as it is sent to Redis, what all of them share before it."""
    folder = files("common.redis") / "lua"
    return (folder / "shared.lua").read_text() + (folder / f"{name}.lua").read_text()
