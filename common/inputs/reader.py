"""Reads inputs of every format as one stream of records, and checks all of them before any work."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

from common.errors import UsageError
from common.inputs.csv import delimited_records
from common.inputs.json_array import json_file_records
from common.inputs.media import attached, file_records, is_list
from common.inputs.record_builder import RecordMaker
from common.inputs.sources import Reading, Source, expand, find_sources, open_bytes
from common.inputs.text_records import json_records, text_records
from common.records import Record
from common.tasks import Task


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of a job, found once: what patterns and data sets of the hub stand for stays the same."""

    task: Task
    parts: tuple[RecordMaker | str, ...]  #: what makes the records of a file; its name where it is itself to be run

    def check(self, max_record_bytes: int) -> None:
        """Read the first record of each input, so that what is wrong with one as a whole is said before any work.

        Standard input and pipes can be read only once: theirs is said when they are read.

        Raises:
            UsageError: an input is unreadable, empty, binary, a broken gzip file, or lacks a column that is needed.
        """
        for part in self.parts:
            if isinstance(part, str):
                next(file_records(part, str(self.task.media)))
                continue
            _check_options(part)
            if part.source.rereadable:
                with closing(_records(part, max_record_bytes)) as records:
                    next(records)

    def records(
        self, max_record_bytes: int, *, shared: Sequence[str] = (), reading: Reading | None = None
    ) -> Iterator[Record]:
        """Return the records of all inputs, in order, read while they are asked for.

        A record that cannot be read carries its failure: `bad_encoding`, `bad_json`, `bad_csv`, `missing_field`,
        `too_large`.

        Args:
            max_record_bytes: what is longer fails, and is never held whole.
            shared: directories and addresses whose files workers read by themselves.
            reading: gets how much was read.

        Raises:
            UsageError: while reading, if an input cannot be read on.
        """
        records = chain.from_iterable(
            file_records(part, str(self.task.media))
            if isinstance(part, str)
            else _records(replace(part, source=replace(part.source, reading=reading)), max_record_bytes)
            for part in self.parts
        )
        return attached(records, self.task, max_record_bytes, shared) if self.task.media else records


def find_inputs(
    names: Sequence[str],
    task: Task,
    *,
    format: str | None = None,
    column: str | None = None,
    id_column: str | None = None,
    quoting: str | None = None,
) -> Inputs:
    """Return the inputs of those names.

    Args:
        names: paths, addresses, data sets of the hub, or `-` for standard input.
        task: says which fields make an input.
        format: one of `FORMATS`, against the extension.
        column: the column that holds the input.
        id_column: the column that holds the id; else `id` or `custom_id`, else the line from 0.
        quoting: one of `QUOTING`; None: double quotes in CSV, none in TSV.

    Raises:
        UsageError: an input is missing, a directory, or of an unknown format.
    """

    def has_records(name: str) -> bool:
        return task.media is None or is_list(name, format)

    names = expand(names)
    sources = iter(find_sources(list(filter(has_records, names)), format, quoting))
    make = partial(RecordMaker, task=task, column=column, id_column=id_column, several=len(names) > 1)
    return Inputs(task, tuple(make(next(sources)) if has_records(name) else name for name in names))


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
        elif make.source.format == "json":
            yield from json_file_records(make, stream, max_bytes)
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
    if not make.task.bare:
        raise UsageError(
            f"{make.task.name} needs {make.task.needs}, but {source.label} is plain text, one text a line. "
            "Give a jsonl, csv or parquet file (for standard input, say --format)."
        )
