"""Payload backends: the payloads of a job in Redis, or in files under a path or URL.

`common.payloads.codec` defines the content of a payload, and the ledger decides which worker may write it.
"""

from collections.abc import Sequence
from typing import cast

import redis

from common.errors import NotSubmitting, PayloadError
from common.jobs import JobStatus
from common.redis import keys
from common.redis.keys import JobKeys
from common.redis.scripts import Scripts
from common.storage.storage import open_storage

#: What Redis holds in place of a payload that is in a file; neither Arrow nor JSON begins so.
_FILE_MARKER = b"="
_OUT, _SUFFIX = "out", ".arrow"


#: Of a commit: (round, lease number).
Version = tuple[int, int]


class RedisPayloads:
    """The payloads of one job in its hashes, inputs apart from outcomes: one time to live ends them all."""

    def __init__(self, client: "redis.Redis", scripts: Scripts, job_id: str) -> None:
        self._client = client
        self._scripts = scripts
        self._job_id = job_id
        self._keys = JobKeys.of(job_id)

    def add_input(self, name: str, payload: bytes) -> None:
        """Write a payload of a job that is being submitted, and note that its producer is alive.

        Raises:
            redis.RedisError: Redis is away or full.
            NotSubmitting: the job was given up, cancelled or deleted meanwhile.
            StorageError: the file cannot be written.
        """
        answer = self._scripts.run("add_chunk", self._job_id, name, payload).decode()
        if answer != "written":
            raise NotSubmitting(self._job_id, answer)

    def input(self, name: str) -> bytes | None:
        """Return a payload of the input, None if there is none."""
        return cast("bytes | None", self._client.hget(self._keys.input, name))

    def write_outcomes(self, name: str, payload: bytes) -> None:
        """Write outcomes, unless the job has ended."""
        self._scripts.write(self._job_id, "output", name, payload)

    def outcomes(self, names: Sequence[str]) -> list[bytes | None]:
        """Return payloads of outcomes, None for missing ones."""
        return list(self._client.hmget(self._keys.output, list(names))) if names else []

    def delete_outcomes(self, name: str) -> None:
        """Delete outcomes whose commit was refused."""
        self._client.hdel(self._keys.output, name)

    def outcome_names(self) -> set[str]:
        """Return the names of all outcomes."""
        return {name.decode(errors="replace") for name in self._client.hkeys(self._keys.output)}

    def has_ended(self) -> bool:
        """Whether the job has ended or was deleted, so that nothing more is written of it."""
        status = cast("bytes | None", self._client.hget(self._keys.job, "status"))
        return status is None or JobStatus(status.decode()).finished


class FilePayloads(RedisPayloads):
    """Payloads in files. Redis holds a marker for each, and small payloads themselves (`FileSplit`)."""

    #: Payloads up to this many bytes stay in Redis, where they take less than a file.
    SMALL = 1024

    def __init__(self, client: "redis.Redis", scripts: Scripts, job_id: str, url: str) -> None:
        """Keep the payloads under `url`, in a folder named like the job."""
        super().__init__(client, scripts, job_id)
        self._url = url
        self._storage = open_storage(url, job_id)
        self._is_registered = False

    def add_input(self, name: str, payload: bytes) -> None:
        """Write a file, then its marker."""
        if len(payload) <= self.SMALL:
            super().add_input(name, payload)
            return
        self._write(_input_file(name), payload)
        try:
            super().add_input(name, _FILE_MARKER)
        except NotSubmitting:
            self._storage.remove(_input_file(name))
            self._remove_if_deleted()
            raise

    def input(self, name: str) -> bytes | None:
        """Return the payload from Redis or from its file."""
        recorded = super().input(name)
        return self._storage.read(_input_file(name)) if recorded == _FILE_MARKER else recorded

    def write_outcomes(self, name: str, payload: bytes) -> None:
        """Write a file, unless the job has ended."""
        if not self.has_ended():
            self._write(_outcome_file(name), payload)
            self._remove_if_deleted()

    def outcomes(self, names: Sequence[str]) -> list[bytes | None]:
        """Return the files' bytes."""
        return [self._storage.read(_outcome_file(name)) for name in names]

    def delete_outcomes(self, name: str) -> None:
        """Remove the file."""
        self._storage.remove(_outcome_file(name))

    def outcome_names(self) -> set[str]:
        """Return the names that the files have without their suffix."""
        files = self._storage.names(_OUT)
        return {file.removesuffix(_SUFFIX).replace("-", ":") for file in files if file.endswith(_SUFFIX)}

    def _remove_if_deleted(self) -> None:
        """Remove the files of a job that was deleted while one was written, which whoever deleted it had not seen."""
        if self._client.exists(self._keys.job):
            return
        self._client.hset(keys.STORED, self._job_id, self._url)  # a reaper removes them if this process does not
        self._storage.remove_all()
        self._client.hdel(keys.STORED, self._job_id)

    def _write(self, file: str, data: bytes) -> None:
        if not self._is_registered:  # before the first file, so that the reaper finds it
            self._client.hset(keys.STORED, self._job_id, self._url)
            self._is_registered = True
        self._storage.write(file, data)


def _input_file(name: str) -> str:
    return f"in/{name.replace(':', '-')}{_SUFFIX}"


def _outcome_file(name: str) -> str:
    return f"{_OUT}/{name.replace(':', '-')}{_SUFFIX}"


def outcome_name(chunk: int, version: Version) -> str:
    """Return the name of a chunk's outcomes."""
    return f"{chunk}:{version[0]}:{version[1]}"


def decode_versions(raw: bytes | None) -> list[Version]:
    """Return (round, lease number) of each commit of a chunk as the commit script noted them, oldest first.

    Raises:
        PayloadError: it is not what that script writes.
    """
    try:
        commits = (item.split(":") for item in (raw or b"").decode().split())
        return [(int(round_), int(number)) for round_, number, *_ in commits]
    except ValueError as error:
        raise PayloadError(f"not a list of commits: {raw!r:.100}") from error
