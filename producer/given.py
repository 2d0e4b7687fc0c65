"""Records that a program gives, in place of a file: texts, objects, or pairs of id and input, one after the other."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from common.encoder import plain, to_json
from common.errors import UsageError
from common.inputs.making import RecordMaker
from common.inputs.media import attached
from common.inputs.sources import Source
from common.tasks import Task
from common.values import Failure, Json, Record

#: What a program may give: a path (a text by itself is one), several paths, or records.
Given = str | PathLike[str] | Iterable[str | Mapping[str, Json] | list[Json] | tuple[Json, Json] | PathLike[str]]


class _Program(Source):
    """The program that gives the records; messages count them from 0, as their ids do."""

    def place(self, number: int) -> str:
        return f"record {number - 1}"


def split_given(given: Given) -> tuple[tuple[str, ...], Iterable[Any]]:
    """Return the paths that are given, or the records if it is these; the other one is empty.

    A text by itself is a path, texts one after the other are records; several paths are `pathlib.Path`.

    Raises:
        UsageError: nothing is given, or it cannot be gone through.
    """
    if isinstance(given, str | PathLike):
        return (fspath(given),), ()
    try:
        rest = iter(given)
    except TypeError as error:
        raise UsageError(f"records: expected a path, or records to go through, found {given!r:.100}.") from error
    first = next(rest, None)
    if first is None:
        raise UsageError("Empty input: records holds no record.")
    if isinstance(first, PathLike):
        return tuple(map(_path, chain([first], rest))), ()
    return (), chain([first], rest)


def given_records(
    values: Iterable[Any], task: Task, *, column: str | None, id_column: str | None, max_record_bytes: int
) -> Iterator[Record]:
    """Return a record for each value; what is none fails alone, as a line of a file does.

    Args:
        values: texts, objects, lists (of chat messages), or pairs of an id and one of these.
        task: says which fields make an input.
        column: the key of an object that holds the input.
        id_column: the key that holds the id; else `id` or `custom_id`, else the number from 0.
        max_record_bytes: what is longer fails.
    """
    make = RecordMaker(_Program("records", "jsonl"), task, column, id_column, several=False)
    records = (_record(make, number, value, max_record_bytes) for number, value in enumerate(values))
    return attached(records, task, max_record_bytes) if task.media else records


def _record(make: RecordMaker, number: int, value: Any, max_bytes: int) -> Record:
    if isinstance(value, tuple) and len(value) == 2:
        return replace(_record(make, number, value[1], max_bytes), id=plain(value[0]))
    try:
        row = value if isinstance(value, str) else plain(value)
        size = len((row if isinstance(row, str) else to_json(row)).encode(errors="surrogatepass"))
    except TypeError as error:
        return make.failed(number, Failure("wrong_type", f"record {number}: {error}"), repr(value)[:200])
    if size > max_bytes:
        text = f"record {number}: the record is longer than {max_bytes:,} bytes (HUGQUEUE_MAX_RECORD_BYTES)"
        return make.failed(number, Failure("too_large", text), (row if isinstance(row, str) else to_json(row))[:200])
    return make.record(number, number + 1, row)


def _path(value: Any) -> str:
    if not isinstance(value, PathLike):
        raise UsageError(f"records: a path among them was followed by {value!r:.100}; give paths alone, or records.")
    return str(Path(value))
