"""Lua scripts (`lua/`): each is a step on one job, which Redis runs atomically."""

import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.resources import files
from typing import Any

import redis

from common.redis import keys
from common.redis.keys import JobKeys

#: Where a function of `shared.lua` begins, with the comment above it; and its name.
_BEFORE_FUNCTION = re.compile(r"\n\n(?=(?:--.*\n)*local function )")
_FUNCTION_NAME = re.compile(r"^local function (\w+)", re.MULTILINE)
#: How often Redis may restart between the loading of a script and its call.
_RESTARTS = 5


class Scripts:
    """Runs scripts by name; loads each into Redis once."""

    def __init__(self, client: "redis.Redis") -> None:
        self._client = client
        self._registered: dict[str, Any] = {}

    def run(self, script: str, job_id: str, *args: Any) -> Any:
        """Return the script's answer for that job.

        Raises:
            redis.RedisError: Redis is unavailable or full, or the job's keys hold values of a wrong type.
        """
        return self.run_on(script, _keys_for(job_id), *args)

    def run_on(self, script: str, script_keys: Sequence[str], *args: Any) -> Any:
        """Return the answer of a script that takes other keys than those of one job.

        Raises:
            redis.RedisError: as `run`.
        """
        self._register(script)
        for _ in range(_RESTARTS):
            # redis-py loads a script that Redis does not know and calls it again, once.
            with suppress(redis.exceptions.NoScriptError):
                return self._registered[script](keys=script_keys, args=args)
        raise redis.ConnectionError(f"Redis keeps forgetting its scripts: {script} was loaded {_RESTARTS} times.")

    def run_each(self, script: str, job_ids: Sequence[str], *args: Any) -> "list[Any | redis.RedisError]":
        """Return the script's answer, or the error, for each of these jobs, in one round trip.

        Raises:
            redis.RedisError: Redis is unavailable.
        """
        self._register(script)
        with self._client.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                self._registered[script](keys=_keys_for(job_id), args=args, client=pipe)
            answers = pipe.execute(raise_on_error=False)
        return [
            self.run(script, job_id, *args) if isinstance(answer, redis.exceptions.NoScriptError) else answer
            for job_id, answer in zip(job_ids, answers, strict=True)
        ]

    def _register(self, script: str) -> None:
        if script not in self._registered:
            self._registered[script] = self._client.register_script(script_text(script))

    def write(self, job_id: str, hash_name: str, field: str, value: str | bytes) -> bool:
        """Write a field of one of the job's hashes, unless the job has ended; return whether it was written."""
        return bool(self.run("write_field", job_id, JobKeys.position(hash_name), field, value))


def _keys_for(job_id: str) -> list[str]:
    shared = (
        *(keys.ACTIVE, keys.JOBS, keys.DUE, keys.SCHEMA, keys.TOTALS, keys.SHOWN),
        *(keys.NOTIFICATIONS, keys.UNBLOCKED),
    )
    return [*JobKeys.of(job_id).all(), *shared]


@cache
def script_text(name: str) -> str:
    """Return the text of a script as Redis loads it: the names of keys, and the shared functions that it needs.

    Redis makes the functions anew in each call: all of them take longer than a small script itself.
    """
    folder = files("common.redis") / "lua"
    names, *functions = _BEFORE_FUNCTION.split((folder / "shared.lua").read_text())
    text = (folder / f"{name}.lua").read_text()
    for function in reversed(functions):  # each can only use those before it
        if re.search(rf"\b{_FUNCTION_NAME.findall(function)[0]}\b", text):
            text = f"{function}\n\n{text}"
    return f"{names}\n\n{text}"
