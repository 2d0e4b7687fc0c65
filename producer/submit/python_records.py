"""Python records: texts, objects, or pairs of id and input that a program passes instead of a file."""

import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, time, timedelta
from decimal import Decimal
from glob import iglob
from itertools import chain
from os import PathLike, fspath
from pathlib import Path
from typing import Any
from uuid import UUID

from common.errors import UsageError
from common.inputs.media import attach_files
from common.inputs.record_builder import RecordBuilder
from common.inputs.sources import Source
from common.inputs.templated_records import refuse_unknown_columns
from common.json_codec import to_json, to_jsonable
from common.own_columns import KEEP_NONE, Keep
from common.records import Failure, Json, Record
from common.storage.locations import MayOpen, any_location
from common.tasks import Task
from common.template import Template
from producer.submit.python_tables import HasColumnNames, HasColumns, Table, table_of

#: What a program may give: a path (a text by itself is one), several paths, a table, or records.
RecordsArg = (
    str
    | PathLike[str]
    | Mapping[str, Sequence[Any]]
    | HasColumns
    | HasColumnNames
    | Iterable[str | Mapping[str, Json] | list[Json] | tuple[Json, Json] | PathLike[str]]
)

#: Types that JSON lacks and that become text, like cells of Parquet.
_TEXT_TYPES = (UUID, Decimal, date, time, timedelta)
_EMPTY = object()


class _PythonSource(Source):
    """The source of Python records; messages number them from 0, like their ids."""

    def location(self, number: int) -> str:
        return f"record {number - 1}"


def split_records_arg(records: Any) -> tuple[tuple[str, ...], Iterable[Any]]:
    """Return the paths or the records (a `Table` if they have columns) of a `records` argument; the other is empty.

    A text by itself is a path, texts one after the other are records; several paths are `pathlib.Path`.

    Raises:
        UsageError: there are no records, it cannot be gone through, or it is one record by itself.
    """
    if isinstance(records, str) and not _names_files(records):
        raise UsageError(f"records={records[:80]!r}: there is no such file. Put a single record in a list.")
    if isinstance(records, str | PathLike):
        return (fspath(records),), ()
    if table := table_of(records):
        return (), table
    if isinstance(records, bytes | bytearray):
        raise UsageError("records: expected a path, or an iterable of records, found bytes.")
    try:
        rest: Iterator[Any] = iter(records)
    except TypeError as error:
        raise UsageError(f"records: expected a path, or an iterable of records, found {records!r:.100}.") from error
    first = next(rest, _EMPTY)
    if first is _EMPTY:
        raise UsageError("Empty input: records holds no record.")
    if isinstance(first, PathLike):
        return tuple(map(_path, chain([first], rest))), ()
    return (), chain([first], rest)


def _names_files(text: str) -> bool:
    """Whether a text names inputs: an existing path, a URL, a Hub dataset, a job, or a pattern with matches."""
    if text == "-" or text.startswith(("hf:", "job:")) or "://" in text:
        return True
    try:
        return Path(text).expanduser().exists() or any(iglob(text, recursive=True))  # noqa: PTH207 - absolute ones too
    except (OSError, ValueError):  # longer than a name may be; a zero byte
        return False


def python_builder(
    task: Task,
    column: str | None = None,
    id_column: str | None = None,
    keep: Keep = KEEP_NONE,
    template: Template | None = None,
) -> RecordBuilder:
    """Return the builder of records from Python objects.

    Args:
        task: says which fields make an input.
        column: the key of an object that holds the input.
        id_column: the key that holds the id; else `id` or `custom_id`, else the number from 0.
        keep: which keys are kept for the results.
        template: makes the text of each record, instead of `column`.
    """
    source = _PythonSource("records", "jsonl")
    return RecordBuilder(source, task, column, id_column, multiple_inputs=False, template=template, keep=keep)


def records_from_python(
    values: Iterable[Any] | Table,
    builder: RecordBuilder,
    max_record_bytes: int,
    shared: Sequence[str] = (),
    may_open: MayOpen = any_location,
) -> Iterator[Record]:
    """Return a record for each value; only the record fails if a value is invalid, like a line of a file.

    Args:
        values: texts, objects, lists (of chat messages), or pairs of an id and one of these; or a table.
        builder: as `python_builder` returns it.
        max_record_bytes: what is longer fails.
        shared: directories and URLs whose files workers read themselves.
        may_open: whether this process may open a path that a record names.

    Raises:
        UsageError: A table lacks a column that is named or that the task requires, or the first objects do.
    """
    if isinstance(values, Table):
        records = _table_records(builder.with_columns(values.columns), values, max_record_bytes)
    else:
        records = (_record(builder, number, value, max_record_bytes) for number, value in enumerate(values))
        records = refuse_unknown_columns(records) if builder.template else records
    return attach_files(records, builder.task, max_record_bytes, shared, may_open) if builder.task.media else records


def _table_records(builder: RecordBuilder, table: Table, max_bytes: int) -> Iterator[Record]:
    """Return the records of a table, read only from the columns they need and keep."""
    names = builder.read_columns(table.columns)
    if table.batches is not None:
        from common.inputs.parquet import records_of_batches  # pyarrow takes a while to import

        return records_of_batches(builder, (batch.select(names) for batch in table.batches), max_bytes)
    needed = set(builder.columns(table.columns))
    rows = ({n: row.get(n) if n in needed else _kept_value(row.get(n)) for n in names} for row in table.rows)
    return (_record(builder, number, row, max_bytes) for number, row in enumerate(rows))


def _record(builder: RecordBuilder, number: int, value: Any, max_bytes: int) -> Record:
    try:
        if isinstance(value, tuple) and len(value) == 2:
            return replace(_record(builder, number, value[1], max_bytes), id=_json_of(value[0]))
        row = _json_of(value)
        size = len((row if isinstance(row, str) else to_json(row)).encode(errors="surrogatepass"))
    except (TypeError, ValueError, OverflowError, KeyError) as error:  # the last three: times of Arrow
        return builder.failed(number, Failure("wrong_type", f"record {number}: {error}"), reprlib.repr(value))
    except RecursionError:
        what = f"record {number}: it contains itself, or is nested too deeply"
        return builder.failed(number, Failure("wrong_type", what), reprlib.repr(value))
    if size > max_bytes:
        text = f"record {number}: the record is longer than {max_bytes:,} bytes (HUGQUEUE_MAX_RECORD_BYTES)"
        return builder.failed(number, Failure("too_large", text), (row if isinstance(row, str) else to_json(row))[:200])
    return builder.record(number, number + 1, row)


def _kept_value(value: Any) -> Json:
    """Return a value that only results show as JSON; one that has no such form as Python prints it."""
    try:
        return _json_of(value)
    except (TypeError, ValueError, OverflowError, KeyError, RecursionError):
        return reprlib.repr(value)


def _json_of(value: Any) -> Json:
    """Return a Python value as JSON: bytes are decoded as UTF-8, and types that JSON lacks become text.

    Raises:
        TypeError: it has no such form.
        ValueError: bytes are not UTF-8, or a cell of Arrow cannot be a value of Python.
        RecursionError: it holds itself, or is nested too deeply.
    """
    match value:
        case str():
            return value
        case bytes():
            return value.decode()
        case Mapping():
            return {str(key): _json_of(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_json_of(item) for item in value]
    if hasattr(value, "as_py"):  # a cell of a pyarrow.Array
        return _json_of(value.as_py())
    return str(value) if isinstance(value, _TEXT_TYPES) else to_jsonable(value)


def _path(value: Any) -> str:
    if not isinstance(value, PathLike):
        raise UsageError(f"records mixes paths and records: {value!r:.100} is not a path.")
    return str(Path(value))
