"""Reads inputs of every format as one stream of records, and checks all of them before any work."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing

from common.errors import UsageError
from common.inputs.delimited import delimited_records
from common.inputs.making import RecordMaker
from common.inputs.plain_lines import json_records, text_records
from common.inputs.sources import Source, find_sources, open_bytes
from common.tasks import Task
from common.values import Record


def read_records(
    inputs: Sequence[str],
    task: Task,
    *,
    format: str | None = None,
    column: str | None = None,
    id_column: str | None = None,
    max_record_bytes: int,
) -> Iterator[Record]:
    """Return the records of all inputs, in order, read while they are asked for.

    A record that cannot be read carries its failure: `bad_encoding`, `bad_json`, `bad_csv`, `missing_field`,
    `too_large`.

    Args:
        inputs: paths, or `-` for standard input.
        task: says which fields make an input.
        format: one of `FORMATS`, against the extension.
        column: the column that holds the input.
        id_column: the column that holds the id; else `id` or `custom_id`, else the line from 0.
        max_record_bytes: what is longer fails, and is never held whole.

    Raises:
        UsageError: at once, if an input is not there; while reading, if it cannot be read on.
    """
    sources = find_sources(inputs, format)
    makers = [RecordMaker(source, task, column, id_column, several=len(sources) > 1) for source in sources]
    return (record for make in makers for record in _records(make, max_record_bytes))


def check_inputs(
    inputs: Sequence[str],
    task: Task,
    *,
    format: str | None = None,
    column: str | None = None,
    id_column: str | None = None,
    max_record_bytes: int,
) -> None:
    """Read the first record of each input, so that what is wrong with one as a whole is said before any work.

    Standard input and pipes can be read only once: theirs is said when they are read.

    Raises:
        UsageError: an input is missing, unreadable, a directory, empty, binary, a broken gzip file, of an unknown
            format, or lacks a column that is needed.
    """
    sources = find_sources(inputs, format)
    for source in sources:
        make = RecordMaker(source, task, column, id_column, several=len(sources) > 1)
        _check_options(make)
        if source.rereadable:
            with closing(_records(make, max_record_bytes)) as records:
                next(records)


def _records(make: RecordMaker, max_bytes: int) -> Generator[Record, None, None]:
    _check_options(make)
    found = False
    for record in _records_of_format(make, max_bytes):
        found = True
        yield record
    if not found:
        raise UsageError(f"Empty input: {make.source.label} holds no record.")


def _records_of_format(make: RecordMaker, max_bytes: int) -> Iterator[Record]:
    if make.source.format == "parquet":
        from common.inputs.parquet import parquet_records

        yield from parquet_records(make, max_bytes)
        return
    with open_bytes(make.source) as stream:
        if make.source.format == "txt":
            yield from text_records(make, stream, max_bytes)
        elif make.source.format == "jsonl":
            yield from json_records(make, stream, max_bytes)
        else:
            delimiter = "\t" if make.source.format == "tsv" else ","
            yield from delimited_records(make, stream, max_bytes, delimiter)


def _check_options(make: RecordMaker) -> None:
    """Refuse what a text file, which has no columns, cannot give."""
    source: Source = make.source
    if source.format != "txt":
        return
    if make.column or make.id_column:
        option = "--column" if make.column else "--id-column"
        raise UsageError(f"{source.label} is plain text, which has no columns; {option} is for jsonl, csv and parquet.")
    if ("text",) not in make.task.fields:
        raise UsageError(
            f"{make.task.name} needs {make.task.needs}, but {source.label} is plain text, one text a line. "
            "Give a jsonl, csv or parquet file (for standard input, say --format)."
        )
