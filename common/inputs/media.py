"""Images and sounds as inputs: files, directories, patterns, and lists of paths; their bytes go with the record.

A file that is missing, too large, or no image or sound by its first bytes fails alone. Paths in lists are those of
the working directory, as on the command line.
"""

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from common.errors import UsageError, path_errors
from common.inputs.sources import FORMATS
from common.media_types import HEAD_BYTES, LFS_POINTER, SUFFIXES, detect_format, formats
from common.records import Failure, Json, Record
from common.storage.locations import is_shared, is_url, strip_file_scheme
from common.tasks import Task

#: A pattern with `**` as a whole part: what stands before it, and what after.
_ANY_DEPTH = re.compile(r"^((?:[^/]*/)*?)\*\*(?:/(.*))?$", re.DOTALL)


def is_list_of_paths(name: str, format: str | None) -> bool:
    """Whether an input of a task over files holds paths, and is not itself a file to run."""
    endings = tuple(f".{known}{packed}" for known in (*FORMATS, "ndjson") for packed in ("", ".gz"))
    return format is not None or name == "-" or name.lower().endswith(endings)


def media_file_records(name: str, kind: str) -> Iterator[Record]:
    """Yield a record for each file that the name stands for; its id is its path.

    Raises:
        UsageError: it stands for no file.
    """
    found = False
    for path in _paths(name, kind):
        found = True
        yield Record(path, path)
    if not found:
        raise UsageError(f"{name}: there is no {kind} in it. Found by their endings are {_endings(kind)}.")


def attach_files(records: Iterable[Record], task: Task, max_bytes: int, shared: Sequence[str] = ()) -> Iterator[Record]:
    """Yield the records, each with the bytes of the file that it names; what is `shared` workers read by themselves."""
    for record in records:
        yield record if record.failure else _attached(record, task, max_bytes, shared)


def _attached(record: Record, task: Task, max_bytes: int, shared: Sequence[str]) -> Record:
    kind = str(task.media)
    if record.blob is not None:  # out of a Parquet file that holds the files themselves
        named = record.input[kind] if isinstance(record.input, dict) else record.input
        failure = _check(str(named), record.blob, kind, max_bytes)
        return replace(record, failure=failure, blob=None) if failure else record
    path = record.input[kind] if isinstance(record.input, dict) else record.input
    path = strip_file_scheme(path) if isinstance(path, str) else path
    folder = _absolute(path)
    if folder is not None and is_shared(folder, shared):
        named = {**record.input, kind: folder} if isinstance(record.input, dict) else folder
        return replace(record, input=named)
    if isinstance(path, str) and is_url(path):
        told = f"{path} lies under nothing that workers open by themselves (HUGQUEUE_SHARED)"
        return replace(record, failure=Failure("no_file", told))
    blob = _read(path, kind, max_bytes)
    return replace(record, failure=blob) if isinstance(blob, Failure) else replace(record, blob=blob)


def _absolute(path: Json) -> str | None:
    """Return a path as every machine can read it; an address as it is."""
    if not isinstance(path, str) or "\0" in path:
        return None
    return path if is_url(path) else str(Path(path).absolute())


def _read(path: Json, kind: str, max_bytes: int) -> bytes | Failure:
    if not isinstance(path, str):
        return Failure("wrong_type", f"{kind} must be the path of a file, found {type(path).__name__}")
    try:
        if not Path(path).is_file():
            return Failure("no_file", f"there is no file {path}")
        with Path(path).open("rb") as file:
            blob = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        return Failure("no_file", f"{path} cannot be read: {getattr(error, 'strerror', None) or error}")
    return _check(path, blob, kind, max_bytes) or blob


def _check(path: str, blob: bytes, kind: str, max_bytes: int) -> Failure | None:
    if len(blob) > max_bytes:
        return Failure("too_large", f"{path}: the file is longer than {max_bytes:,} bytes (HUGQUEUE_MAX_RECORD_BYTES)")
    if detect_format(kind, blob[:HEAD_BYTES]) is None:
        if blob.startswith(LFS_POINTER):
            return Failure("no_file", f"{path} is a Git LFS pointer, not the file itself; fetch it: git lfs pull")
        code = {"image": "bad_image", "audio": "bad_audio"}[kind]
        return Failure(code, f"{path} is no {kind} by its first bytes; expected one of {formats(kind)}")
    return None


def _paths(name: str, kind: str) -> Iterator[str]:
    with path_errors(f"Cannot read {name}"):
        yield from _found(name, kind)


def _found(name: str, kind: str) -> Iterator[str]:
    path = Path(name)
    if is_url(name):
        if name.endswith("/"):
            raise UsageError(f"{name}: at an address, name the files, as {name}*{SUFFIXES[kind][0]}.")
        yield name
    elif path.is_dir():
        yield from _below(name, kind)
    elif path.exists():
        yield name
    elif glob.has_magic(name):
        yield from (found for found in sorted(set(_matching(name))) if not Path(found).is_dir())
    else:
        raise UsageError(f"There is no file {name}.")


def _matching(pattern: str) -> Iterator[str]:
    """Yield what matches, `**` for any directories; unlike `glob`'s these are never links, which may form a loop."""
    found = _ANY_DEPTH.match(pattern)
    if found is None:
        yield from glob.iglob(pattern)  # noqa: PTH207 - keeps a leading ./, as a shell does
        return
    head, tail = found[1], found[2] or "*"
    for root in glob.iglob(head) if head else ["."]:  # noqa: PTH207
        for folder, below, _ in os.walk(root.rstrip("/") or root):
            below[:] = [name for name in below if not name.startswith(".")]
            inside = glob.escape(folder if head else folder.removeprefix(".").removeprefix("/"))
            yield from _matching(f"{inside}/{tail}" if inside else tail)


def _below(directory: str, kind: str) -> Iterator[str]:
    for folder, below, names in os.walk(directory):
        below.sort()
        yield from (str(Path(folder, name)) for name in sorted(names) if name.lower().endswith(SUFFIXES[kind]))


def _endings(kind: str) -> str:
    return ", ".join(SUFFIXES[kind])
