"""Chunks that are not copied: where their records stand in a file that all machines reach.

Such a chunk's payload is a `FileSplit`, a line of JSON, instead of the records. Lines of `.txt` and `.jsonl` are cut at
line ends, by bytes; rows of `.parquet` inside a row group, so that a reader opens one group alone.
"""

import json
from dataclasses import asdict, dataclass, fields
from types import NoneType
from typing import Any

from common.errors import PayloadError
from common.storage.filesystem import file_version

#: Formats whose rows can be found without reading all that stands before them.
FORMATS = ("txt", "jsonl", "parquet")
#: No range of ours is longer: a chunk's text, and one record of the greatest size after it.
MAX_BYTES = 1024**3


@dataclass(frozen=True, slots=True)
class FileSplit:
    """Some consecutive rows of one file, and how they become records."""

    source: str  #: an absolute path or an address
    format: str  #: one of `FORMATS`
    start: int  #: first byte; of Parquet, first row
    end: int  #: byte (row) after the last one
    first: int  #: number of the first line or row in the file, from 0: a record's id where it brings none
    size: int  #: of the file in bytes, when the job was submitted
    version: str  #: changes when the file does: its time, or its entity tag
    max_bytes: int  #: of one record; a longer one fails
    column: str | None = None
    id_column: str | None = None
    multiple_inputs: bool = False  #: whether the job has other inputs, so that ids carry the file's name

    def encode(self) -> bytes:
        """Return the payload that `decode` takes."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, data: bytes) -> "FileSplit":
        """Return the range of that payload, which is not trusted.

        Raises:
            PayloadError: it is none.
        """
        try:
            values = json.loads(data)
            if not isinstance(values, dict) or values.keys() - {field.name for field in fields(cls)}:
                raise ValueError("not an object with the fields of a range")
            found = cls(**values)
            _check(found)
        except (ValueError, TypeError, RecursionError) as error:
            raise PayloadError(f"not a range of rows: {error}") from error
        return found

    def check_version(self) -> None:
        """Check that the file is the one that was submitted.

        Raises:
            PayloadError: it was changed since.
            StorageError: it is gone, or cannot be looked at.
        """
        size, version = file_version(self.source)
        if (size, version) != (self.size, self.version):
            raise PayloadError(
                f"{self.source} was changed after the job was submitted: it had {self.size:,} bytes then, and has "
                f"{size:,} now. A file that is read in place must stay as it is until its job has ended."
            )


_SHAPES: dict[str, tuple[type, ...]] = {
    "source": (str,),
    "format": (str,),
    "version": (str,),
    "column": (str, NoneType),
    "id_column": (str, NoneType),
    "multiple_inputs": (bool,),
}


def is_split(payload: bytes) -> bool:
    """Whether a chunk's payload says where its records are, instead of holding them: Arrow never begins like that."""
    return payload.startswith(b"{")


def _check(found: FileSplit) -> None:
    for field in fields(FileSplit):
        value: Any = getattr(found, field.name)
        expected = _SHAPES.get(field.name, (int,))
        if type(value) not in expected:
            raise ValueError(f"its {field.name} cannot be {value!r:.100}")
    if found.format not in FORMATS:
        raise ValueError(f"unknown format {found.format!r:.100}")
    sound = 0 <= found.start <= found.end and found.first >= 0 and found.size >= 0 and found.max_bytes > 0
    if not sound or (found.format != "parquet" and found.end - found.start > MAX_BYTES):
        raise ValueError(f"rows {found.first}, bytes {found.start} to {found.end}")


@dataclass(frozen=True, slots=True)
class SizedSplit:
    """A range, and what is in it."""

    rows: FileSplit
    records: int
    bytes: int  #: of text, about
