"""Records and their outcomes: what producer and workers exchange."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from common.errors import RecordError
from common.own_columns import Own

#: A JSON value: None, bool, int, float, str, list or dict of them.
Json = Any


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a record or a job has no result."""

    code: str  #: a name from `docs/errors.md`
    message: str  #: one sentence for a person

    @classmethod
    def from_exception(cls, code: str, error: BaseException) -> "Failure":
        """Return the failure of that code, with the class and the first 2,000 characters of what `error` says."""
        return cls(code, f"{type(error).__name__}: {error}"[:2000])

    def as_dict(self) -> dict[str, Json]:
        """Return what users get as `error`."""
        return {"code": self.code, "message": self.message}


@dataclass(frozen=True, slots=True)
class Record:
    """One input, with its id."""

    id: Json  #: the record's own id, unchanged, or its line number from 0
    input: Json  #: text, or an object with the fields of the task; None if it could not be read
    failure: Failure | None = None  #: why it could not be read; such a record never runs
    blob: bytes | None = None  #: the file that the input names, of a task over files; several by `pack_files`
    own: Own = None  #: the columns that its result repeats; None if the input is all it has


@dataclass(frozen=True, slots=True)
class FileInput:
    """The input of a record that names a file, for a runner."""

    input: Json  #: as in the record: the file's name, or an object that holds it; never opened
    blob: bytes  #: the file itself, untrusted


def pack_files(blobs: Sequence[bytes]) -> bytes:
    """Return the files of a record that has several as its one blob."""
    return msgspec.msgpack.encode(blobs)


def unpack_files(blob: bytes, count: int) -> list[bytes]:
    """Return the files of a record.

    Args:
        blob: of `pack_files`; untrusted.
        count: how many there must be.

    Raises:
        RecordError: `missing_file`, it holds something else.
    """
    try:
        files = msgspec.msgpack.decode(blob, type=list[bytes])
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise RecordError("missing_file", f"The record came without its files: {error}") from error
    if len(files) != count:
        raise RecordError("missing_file", f"The record came with {len(files)} files; expected {count}.")
    return files


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result or the failure of one record."""

    output: Json = None  #: what `transformers.pipeline` gives; once it is encoded, what its task declares
    failure: Failure | None = None
    truncated: bool = False  #: the input was cut to what the model takes


@dataclass(frozen=True, slots=True)
class Counts:
    """Records of a job or a chunk, by outcome."""

    succeeded: int = 0
    failed: int = 0
    truncated: int = 0  #: of the succeeded

    @property
    def done(self) -> int:
        """How many records have an outcome."""
        return self.succeeded + self.failed
