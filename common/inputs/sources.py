"""Input sources: a file, URL or standard input with its format, opened and decompressed.

Refuses directories, binary files and UTF-16. Knows nothing of records.
"""

import gzip
import io
import os
import stat
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import StorageError, UsageError
from common.inputs.hub_datasets import dataset_files, is_hub_dataset
from common.media_types import LFS_POINTER
from common.storage.filesystem import file_version, glob, open_stream
from common.storage.locations import is_url, strip_file_scheme

FORMATS = ("txt", "jsonl", "json", "csv", "tsv", "parquet")
#: Quoting in .csv and .tsv: fields may be in double quotes, or a quote is an ordinary character.
QUOTING = ("double", "none")

_BLOCK = 64 * 1024
_GZIP = b"\x1f\x8b"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")  # UTF-32 begins with one of them as well, or with NUL
_BINARY_FORMATS = {
    b"PAR1": "a Parquet file: use --format parquet",
    b"PK\x03\x04": "a zip archive or an Office document: extract it, or save the sheet as CSV",
    b"%PDF-": "a PDF: extract its text first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: decompress it, or use gzip",
    b"\xfd7zXZ": "compressed with xz: decompress it, or use gzip",
    LFS_POINTER: "a Git LFS pointer, not the file itself: run git lfs pull",
    b"BZh91AY&SY": "compressed with bzip2: decompress it, or use gzip",
}


@dataclass(slots=True)
class ReadProgress:
    """How much of all inputs has been read; the records made from it may come a little later."""

    size: int = 0  #: total bytes; 0 if unknown
    read: int = 0  #: bytes read so far

    @classmethod
    def of(cls, names: Sequence[str]) -> "ReadProgress":
        """Start counting for these inputs; their size is known if all of them are local files."""
        if not all(map(os.path.isfile, names)):
            return cls()
        return cls(sum(map(os.path.getsize, names)))

    @property
    def share(self) -> float:
        """The fraction of the inputs that has been read; 1 if unknown."""
        return min(1.0, self.read / self.size) if self.size else 1.0


@dataclass(frozen=True, slots=True)
class Source:
    """One input: a path as the user wrote it, a URL, or `-`, with its format."""

    name: str
    format: str
    quoting: str | None = None  #: one of `QUOTING`; None: the default of the format
    progress: ReadProgress | None = field(default=None, compare=False, repr=False)  #: counts what is read

    @property
    def is_stdin(self) -> bool:
        """Whether it is standard input."""
        return self.name == "-"

    @property
    def has_quotes(self) -> bool:
        """Whether fields of .csv or .tsv may be in double quotes. TSV has none by definition (IANA)."""
        return self.quoting == "double" or (self.quoting is None and self.format == "csv")

    @property
    def label(self) -> str:
        """Its name in messages."""
        return "standard input" if self.is_stdin else self.name

    @property
    def is_reopenable(self) -> bool:
        """Whether it can be opened twice: pipes and standard input can be read only once."""
        return not self.is_stdin and (is_url(self.name) or Path(self.name).is_file())

    def location(self, number: int) -> str:
        """Return the location of a line (for Parquet, a row) for messages, counted from 1."""
        return f"{self.label} {'row' if self.format == 'parquet' else 'line'} {number}"


def find_sources(inputs: Sequence[str], format: str | None, quoting: str | None = None) -> list[Source]:
    """Return the inputs with their formats: `format` if given, else by extension; `txt` for `-`.

    Raises:
        UsageError: an input is missing, is a directory, or has an unknown format; `-` is named twice; or quoting is
            set for a format without it.
    """
    if format is not None and format not in FORMATS:
        raise UsageError(f"Unknown format {format!r}; expected one of {', '.join(FORMATS)}.")
    if list(inputs).count("-") > 1:
        raise UsageError("Standard input (-) can be read only once, but is named twice.")
    names = expand(inputs)
    for name in names:
        _check_path(name)
    sources = [Source(name, format or _format_of(name), quoting) for name in names]
    _check_quoting(sources, quoting)
    return sources


def _check_quoting(sources: Sequence[Source], quoting: str | None) -> None:
    if quoting is None:
        return
    if quoting not in QUOTING:
        raise UsageError(f"Unknown quoting {quoting!r}; expected one of {', '.join(QUOTING)}.")
    for source in sources:
        if source.format not in ("csv", "tsv"):
            raise UsageError(f"{source.label} is read as {source.format}; --quoting is for csv and tsv.")


def expand(inputs: Sequence[str]) -> list[str]:
    """Return the inputs, with Hub datasets and URL patterns replaced by their files.

    Raises:
        UsageError: nothing matches one of them.
    """
    return [name for pattern in inputs for name in _expanded(pattern)]


def _expanded(name: str) -> list[str]:
    if is_hub_dataset(name):
        return dataset_files(name)
    if not (is_url(name) and "*" in name):
        return [strip_file_scheme(name)]
    try:
        found = glob(name)
    except StorageError as error:
        raise UsageError(error.message) from error
    if not found:
        raise UsageError(f"No file matches {name}.")
    return found


@contextmanager
def open_bytes(source: Source) -> Iterator[io.BufferedReader]:
    """Open a text source, decompressing gzip, which is detected by its first bytes.

    Raises:
        UsageError: it cannot be read, is a corrupt gzip file, or is not text.
    """
    with read_errors(source), ExitStack() as stack:
        stream = _open_raw(source, stack)
        head = stream.peek(_BLOCK)
        if head.startswith(_GZIP):
            unpacked: Any = gzip.GzipFile(fileobj=stream)
            stream = stack.enter_context(io.BufferedReader(unpacked, _BLOCK))
            head = stream.peek(_BLOCK)
        elif head and source.name.lower().endswith(".gz"):
            raise UsageError(f"{source.label} is not a gzip file, although its name ends in .gz.")
        _refuse_binary(source, head)
        yield stream


@contextmanager
def read_errors(source: Source) -> Iterator[None]:
    """Turn errors while reading the source into a `UsageError` that names it."""
    try:
        yield
    except StorageError as error:
        raise UsageError(error.message) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{source.label} is a corrupt gzip file: {error}") from error
    except OSError as error:
        raise UsageError(f"Cannot read {source.label}: {error.strerror or error}.") from error


def _format_of(name: str) -> str:
    if name == "-":
        return "txt"
    path = Path(name.lower())
    if path.suffix == ".gz" and path.stem.endswith(".parquet"):
        raise UsageError(f"{name}: Parquet is already compressed; decompress it with gunzip.")
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    known = {"ndjson": "jsonl"} | {name: name for name in FORMATS}
    if suffix.removeprefix(".") not in known:
        raise UsageError(
            f"{name} has no known extension ({', '.join(f'.{f}' for f in FORMATS)}; all but .parquet also with "
            ".gz). Set its format with --format."
        )
    return known[suffix.removeprefix(".")]


def _check_path(name: str) -> None:
    if name == "-":
        if sys.stdin is None:
            raise UsageError("Standard input is closed; name a file, or pipe the records in.")
        return
    if is_url(name):
        _check_url(name)
        return
    try:
        mode = Path(name).stat().st_mode
    except FileNotFoundError as error:
        raise UsageError(f"No such file: {name}.") from error
    except OSError as error:
        raise UsageError(f"Cannot read {name}: {error.strerror}.") from error
    if stat.S_ISDIR(mode):
        raise UsageError(f"{name} is a directory; pass the files in it, for example {name.rstrip('/')}/*.txt.")


def _check_url(name: str) -> None:
    try:
        file_version(name)
    except StorageError as error:
        raise UsageError(error.message) from error


class _Counted(io.FileIO):
    """A file that counts the bytes read from it."""

    def __init__(self, source: Source) -> None:
        super().__init__(source.name)
        self._progress = source.progress or ReadProgress()

    def readinto(self, buffer: Any, /) -> int:
        count = super().readinto(buffer)
        self._progress.read += count
        return count


def _open_raw(source: Source, stack: ExitStack) -> io.BufferedReader:
    if is_url(source.name):
        found: Any = stack.enter_context(open_stream(source.name))
        return stack.enter_context(io.BufferedReader(found, _BLOCK))
    if not source.is_stdin:
        return stack.enter_context(io.BufferedReader(_Counted(source), _BLOCK))
    buffer: Any = sys.stdin.buffer
    # The raw stream returns what a pipe has at once; a buffered one would wait for a whole block.
    stream = io.BufferedReader(getattr(buffer, "raw", buffer), _BLOCK)
    stack.callback(stream.detach)  # standard input stays open for later readers
    return stream


def _refuse_binary(source: Source, head: bytes) -> None:
    for magic, words in _BINARY_FORMATS.items():
        if head.startswith(magic):
            raise UsageError(f"{source.label} is {words}.")
    if b"\0" in head or head.startswith(_UTF16_BOMS):
        raise UsageError(
            f"{source.label} is binary; expected UTF-8 text ({source.format}). If it is text in UTF-16, "
            "convert it: iconv -f UTF-16 -t UTF-8 OLD > NEW."
        )
