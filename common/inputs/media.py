"""Image, audio and video inputs: files, directories, patterns and lists of paths; the record carries the bytes.

A file that is missing, too large, or of another type by its first bytes fails alone. Paths in lists are relative to
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
from common.records import Failure, Json, Record, pack_files
from common.storage.locations import MayOpen, any_location, is_shared, is_url, strip_file_scheme
from common.tasks import Task

#: A pattern with `**` as a whole component: the part before it, and the part after.
_ANY_DEPTH = re.compile(r"^((?:[^/]*/)*?)\*\*(?:/(.*))?$", re.DOTALL)


def names_media(name: str, task: Task, format: str | None) -> bool:
    """Whether an input names files that are records themselves, rather than a file that lists records."""
    endings = tuple(f".{known}{packed}" for known in (*FORMATS, "ndjson") for packed in ("", ".gz"))
    if not task.media or format is not None or name == "-" or name.lower().endswith(endings):
        return False
    return task.reads_files or name.lower().endswith(_suffixes(task)) or glob.has_magic(name) or Path(name).is_dir()


def media_file_records(name: str, task: Task) -> Iterator[Record]:
    """Yield a record for each file that matches the name; its id is the path.

    Raises:
        UsageError: no file matches.
    """
    found = False
    for path in _paths(name, task):
        found = True
        yield Record(path, path if task.reads_files else {_kind_of(path, task): path})
    if not found:
        raise UsageError(f"{name}: contains no {' or '.join(task.media)} files ({', '.join(_suffixes(task))}).")


def _kind_of(path: str, task: Task) -> str:
    return next((kind for kind in task.media if path.lower().endswith(SUFFIXES[kind])), task.media[0])


def _suffixes(task: Task) -> tuple[str, ...]:
    return tuple(suffix for kind in task.media for suffix in SUFFIXES[kind])


def attach_files(
    records: Iterable[Record],
    task: Task,
    max_bytes: int,
    shared: Sequence[str] = (),
    may_open: MayOpen = any_location,
) -> Iterator[Record]:
    """Yield the records with the bytes of their files, of those that this process may open.

    Workers read files under `shared` themselves.
    """
    for record in records:
        has_file = not record.failure and task.file_fields(record.input)
        yield _attached(record, task, max_bytes, shared, may_open) if has_file else record


def _attached(record: Record, task: Task, max_bytes: int, shared: Sequence[str], may_open: MayOpen) -> Record:
    names = task.file_fields(record.input)
    if len(names) > 1 and task.second_file is None:
        return replace(record, failure=Failure("wrong_type", f"a record has one file, found {' and '.join(names)}"))
    kind = names[0]
    if record.blob is not None:  # from a Parquet file that contains the files
        if task.second_file is not None:
            what = f"{task.name} takes the paths of two files, not files in columns of Parquet"
            return replace(record, failure=Failure("wrong_type", what), blob=None)
        named = record.input[kind] if isinstance(record.input, dict) else record.input
        failure = _check(str(named), record.blob, kind, max_bytes)
        return replace(record, failure=failure, blob=None) if failure else record
    fields = record.input if isinstance(record.input, dict) else {kind: record.input}
    paths = {name: strip_file_scheme(fields[name]) if isinstance(fields[name], str) else fields[name] for name in names}
    folders = {name: _absolute(path) for name, path in paths.items()}
    if all(folder is not None and is_shared(folder, shared) for folder in folders.values()):
        named = {**record.input, **folders} if isinstance(record.input, dict) else folders[kind]
        return replace(record, input=named)
    found = [_read(path, kind, max_bytes, may_open) for path in paths.values()]
    failure = next((part for part in found if isinstance(part, Failure)), None)
    if failure is not None:
        hint = "" if task.reads_files or "text" not in fields else "; --column text takes the text alone"
        return replace(record, failure=replace(failure, message=failure.message + hint))
    blobs = [part for part in found if isinstance(part, bytes)]
    return replace(record, blob=blobs[0] if task.second_file is None else pack_files(blobs))


def _absolute(path: Json) -> str | None:
    """Return an absolute path; URLs are returned unchanged."""
    if not isinstance(path, str) or "\0" in path:
        return None
    return path if is_url(path) else str(Path(path).absolute())


def _read(path: Json, kind: str, max_bytes: int, may_open: MayOpen) -> bytes | Failure:
    if not isinstance(path, str):
        return Failure("wrong_type", f"{kind} must be the path of a file, found {type(path).__name__}")
    folder = _absolute(path)
    if is_url(path) or (folder is not None and not may_open(folder)):
        return Failure("no_file", f"{path} is not under a location that workers may open (HUGQUEUE_SHARED)")
    try:
        if not Path(path).is_file():
            return Failure("no_file", f"no such file: {path}")
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
            return Failure("no_file", f"{path} is a Git LFS pointer, not the file itself; run git lfs pull")
        article = "a" if kind == "video" else "an"
        return Failure(
            f"bad_{kind}", f"{path} is not {article} {kind} file by its first bytes; expected one of {formats(kind)}"
        )
    return None


def _paths(name: str, task: Task) -> Iterator[str]:
    with path_errors(f"Cannot read {name}"):
        yield from _found(name, _suffixes(task))


def _found(name: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    path = Path(name)
    if is_url(name):
        if name.endswith("/"):
            raise UsageError(f"{name}: pass the files at a URL, for example {name}*{suffixes[0]}.")
        yield name
    elif path.is_dir():
        yield from _below(name, suffixes)
    elif path.exists():
        yield name
    elif glob.has_magic(name):
        yield from (found for found in sorted(set(_matching(name))) if not Path(found).is_dir())
    else:
        raise UsageError(f"No such file: {name}.")


def _matching(pattern: str) -> Iterator[str]:
    """Yield matching paths; `**` matches any directories but, unlike in `glob`, no links, which may form a loop."""
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


def _below(directory: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    for folder, below, names in os.walk(directory):
        below.sort()
        yield from (str(Path(folder, name)) for name in sorted(names) if name.lower().endswith(suffixes))
