"""File splits: chunks whose records stay in a file that every machine can reach.

The payload of such a chunk is a `FileSplit`, a line of JSON, instead of the records. `.txt` and `.jsonl` are split at
line ends, by bytes; `.parquet` inside a row group, so that a reader opens one group only.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from common.errors import PayloadError
from common.storage.filesystem import file_version

#: Formats whose rows can be found without reading everything before them.
FORMATS = ("txt", "jsonl", "parquet")
#: Maximum bytes of a split: the text of a chunk, and one record of the largest size after it.
MAX_BYTES = 1024**3

_Count = Annotated[int, msgspec.Meta(ge=0)]


class FileSplit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Consecutive rows of one file, and how they become records."""

    source: str  #: an absolute path or a URL
    format: Literal["txt", "jsonl", "parquet"]
    start: _Count  #: first byte; for Parquet, first row
    end: _Count  #: byte (row) after the last one
    first: _Count  #: number of the first line or row in the file, from 0: the id of a record without one
    size: _Count  #: of the file in bytes, when the job was submitted
    version: str  #: changes when the file does: its modification time, or its entity tag
    max_bytes: Annotated[int, msgspec.Meta(gt=0)]  #: of one record; a longer one fails
    column: str | None = None
    id_column: str | None = None
    multiple_inputs: bool = False  #: whether the job has other inputs, so that ids include the file's name

    def encode(self) -> bytes:
        """Return the payload that `decode` reads."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> "FileSplit":
        """Return the split in that payload, which is untrusted.

        Raises:
            PayloadError: it is not a valid split.
        """
        try:
            found = msgspec.json.decode(data, type=cls)
        except (ValueError, RecursionError) as error:  # of msgspec, or text that is not UTF-8
            raise PayloadError(f"not a file split: {error}") from error
        if found.start > found.end or (found.format != "parquet" and found.end - found.start > MAX_BYTES):
            raise PayloadError(f"not a file split: bytes {found.start} to {found.end}")
        return found

    def check_version(self) -> None:
        """Check that the file is the one that was submitted.

        Raises:
            PayloadError: it has changed since.
            StorageError: it is missing or cannot be read.
        """
        size, version = file_version(self.source)
        if (size, version) != (self.size, self.version):
            raise PayloadError(
                f"{self.source} changed after the job was submitted: it had {self.size:,} bytes then and has "
                f"{size:,} now. A file that workers read in place must not change until the job has ended."
            )


def is_split(payload: bytes) -> bool:
    """Whether a payload is a file split rather than records: an Arrow stream never begins with a brace."""
    return payload.startswith(b"{")


@dataclass(frozen=True, slots=True)
class SizedSplit:
    """A split and what it contains."""

    rows: FileSplit
    records: int
    bytes: int  #: of text, approximately
