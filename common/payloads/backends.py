"""Where the payloads of a job lie: in Redis, or in files under an address; and its parts, where it has an output.

What a chunk's payload holds is `common.payloads.codec`' matter, who may write it the ledger's.
"""

from abc import ABC, abstractmethod
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


#: Of a commit: (round, serial number of its lease).
Version = tuple[int, int]


class PayloadStore(ABC):
    """The payloads of one job, by name, inputs apart from outcomes."""

    def __init__(self, client: "redis.Redis", scripts: Scripts, job_id: str) -> None:
        self._client = client
        self._scripts = scripts
        self._job_id = job_id
        self._keys = JobKeys.of(job_id)

    @abstractmethod
    def add_input(self, name: str, payload: bytes) -> None:
        """Write a payload of a job that is being submitted, and that its producer lives.

        Args:
            name: of the payload.
            payload: its bytes.

        Raises:
            redis.RedisError: Redis is away or full.
            NotSubmitting: the job was given up, cancelled or deleted meanwhile.
            StorageError: the file cannot be written.
        """

    @abstractmethod
    def input(self, name: str) -> bytes | None:
        """Return a payload of the input; None where there is none."""

    @abstractmethod
    def write_outcomes(self, name: str, payload: bytes) -> None:
        """Write outcomes; of a job that has ended nothing is written."""

    @abstractmethod
    def outcomes(self, names: Sequence[str]) -> list[bytes | None]:
        """Return payloads of outcomes, None for those that are not there."""

    @abstractmethod
    def delete_outcomes(self, name: str) -> None:
        """Take outcomes back."""

    @abstractmethod
    def outcome_names(self) -> set[str]:
        """Return the names of all outcomes that are there."""

    def has_ended(self) -> bool:
        """Whether the job has ended, or is forgotten: nothing more is written of it."""
        status = cast("bytes | None", self._client.hget(self._keys.job, "status"))
        return status is None or JobStatus(status.decode()).finished

    def _record_input(self, name: str, payload: bytes) -> None:
        answer = self._scripts.run("add_chunk", self._job_id, name, payload).decode()
        if answer != "written":
            raise NotSubmitting(self._job_id, answer)

    def _recorded_input(self, name: str) -> bytes | None:
        return cast("bytes | None", self._client.hget(self._keys.input, name))


class RedisPayloads(PayloadStore):
    """Payloads as fields of the job's hashes: one time to live ends them all."""

    def add_input(self, name: str, payload: bytes) -> None:
        """Write a payload of a job that is being submitted."""
        self._record_input(name, payload)

    def input(self, name: str) -> bytes | None:
        """Return a payload of the input."""
        return self._recorded_input(name)

    def write_outcomes(self, name: str, payload: bytes) -> None:
        """Write outcomes, unless the job has ended."""
        self._scripts.write(self._job_id, "output", name, payload)

    def outcomes(self, names: Sequence[str]) -> list[bytes | None]:
        """Return payloads of outcomes in one round trip."""
        return list(self._client.hmget(self._keys.output, list(names))) if names else []

    def delete_outcomes(self, name: str) -> None:
        """Take outcomes back."""
        self._client.hdel(self._keys.output, name)

    def outcome_names(self) -> set[str]:
        """Return the fields of the hash."""
        return {name.decode(errors="replace") for name in self._client.hkeys(self._keys.output)}


class FilePayloads(PayloadStore):
    """Payloads as files; Redis knows which there are, and keeps what is as small as that itself (`FileSplit`)."""

    #: Payloads up to this many bytes stay in Redis: a file would take more.
    SMALL = 1024

    def __init__(self, client: "redis.Redis", scripts: Scripts, job_id: str, url: str) -> None:
        """Keep the payloads in `address`, a store that other jobs have too."""
        super().__init__(client, scripts, job_id)
        self._url = url
        self._storage = open_storage(url, job_id)
        self._is_registered = False

    def add_input(self, name: str, payload: bytes) -> None:
        """Write a file, then that it is there."""
        if len(payload) <= self.SMALL:
            self._record_input(name, payload)
            return
        self._write(_input_file(name), payload)
        try:
            self._record_input(name, _FILE_MARKER)
        except NotSubmitting:
            self._storage.remove(_input_file(name))
            raise

    def input(self, name: str) -> bytes | None:
        """Return what Redis or the file has."""
        recorded = self._recorded_input(name)
        return self._storage.read(_input_file(name)) if recorded == _FILE_MARKER else recorded

    def write_outcomes(self, name: str, payload: bytes) -> None:
        """Write a file, unless the job has ended."""
        if not self.has_ended():
            self._write(_outcome_file(name), payload)

    def outcomes(self, names: Sequence[str]) -> list[bytes | None]:
        """Return the files' bytes."""
        return [self._storage.read(_outcome_file(name)) for name in names]

    def delete_outcomes(self, name: str) -> None:
        """Remove the file."""
        self._storage.remove(_outcome_file(name))

    def outcome_names(self) -> set[str]:
        """Return what the files are of."""
        files = self._storage.names(_OUT)
        return {file.removesuffix(_SUFFIX).replace("-", ":") for file in files if file.endswith(_SUFFIX)}

    def _write(self, file: str, data: bytes) -> None:
        if not self._is_registered:  # before there is any file: whoever clears up must find it
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
    """Return (round, serial) of each commit of a chunk as the commit script noted them, the oldest first.

    Raises:
        PayloadError: it did not write this.
    """
    try:
        commits = (item.split(":") for item in (raw or b"").decode().split())
        return [(int(round_), int(serial)) for round_, serial, *_ in commits]
    except ValueError as error:
        raise PayloadError(f"not a list of commits: {raw!r:.100}") from error
