"""The input reader: files of every format as one stream of records, checked before any work."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice

from common.errors import UsageError
from common.inputs.csv import csv_records
from common.inputs.json_array import json_file_records
from common.inputs.media import attach_files, media_file_records, names_media
from common.inputs.record_builder import RecordBuilder
from common.inputs.sampling import SAMPLE_BYTES, SAMPLE_RECORDS, columns_of, file_columns
from common.inputs.sources import ReadProgress, Source, expand, find_sources, open_bytes
from common.inputs.templated_records import refuse_unknown_columns
from common.inputs.text import json_records, text_records
from common.own_columns import KEEP_NONE, Columns, Keep, merge_columns
from common.records import Record
from common.storage.locations import MayOpen, any_location
from common.tasks import Task
from common.template import Template


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of a job. Patterns and Hub datasets are expanded once, so that the files stay the same."""

    task: Task
    #: what builds the records of a file, or the name of a file that is itself a record
    parts: tuple[RecordBuilder | str, ...]
    keep: Keep = KEEP_NONE  #: which columns records carry for their results

    def check(self, max_record_bytes: int) -> dict[str, str]:
        """Read the first records of each input to find errors of whole files before any work.

        Standard input and pipes can be read only once, so they are checked when they are read.

        Returns:
            The own columns of all inputs that records keep, and their types (`common.own_columns`).

        Raises:
            UsageError: an input is unreadable, empty, binary, a corrupt gzip file, or lacks a required or kept column;
                or a column has different types in two inputs.
        """
        found: list[tuple[str, Columns]] = []
        for part in self.parts:
            if isinstance(part, str):
                record = next(media_file_records(part, self.task))
                found.append((part, file_columns(self.task.file_fields(record.input)[0], self.keep, part)))
                continue
            _check_options(part)
            if part.source.is_reopenable:
                with closing(_records(part, max_record_bytes)) as records:
                    found.append((part.source.label, columns_of(records, part)))
        return merge_columns(found)

    def records(
        self,
        max_record_bytes: int,
        *,
        shared: Sequence[str] = (),
        progress: ReadProgress | None = None,
        may_open: MayOpen = any_location,
    ) -> Iterator[Record]:
        """Return the records of all inputs, in order, read lazily.

        A record that cannot be read carries its failure: `bad_encoding`, `bad_json`, `bad_csv`, `missing_field`,
        `too_large`.

        Args:
            max_record_bytes: longer records fail, and are never held in memory.
            shared: directories and URLs whose files workers read themselves.
            progress: counts the bytes read.
            may_open: whether this process may open a path that a record names.

        Raises:
            UsageError: while reading, if the rest of an input cannot be read.
        """
        records = chain.from_iterable(
            media_file_records(part, self.task)
            if isinstance(part, str)
            else _records(replace(part, source=replace(part.source, progress=progress)), max_record_bytes)
            for part in self.parts
        )
        return attach_files(records, self.task, max_record_bytes, shared, may_open) if self.task.media else records


def find_inputs(
    names: Sequence[str],
    task: Task,
    *,
    format: str | None = None,
    column: str | None = None,
    id_column: str | None = None,
    quoting: str | None = None,
    template: Template | None = None,
    keep: Keep = KEEP_NONE,
) -> Inputs:
    """Find the inputs with these names.

    Args:
        names: paths, URLs, Hub datasets, or `-` for standard input.
        task: defines the fields of a record.
        format: one of `FORMATS`; overrides the extension.
        column: the column with the input.
        id_column: the column with the id; by default `id` or `custom_id`, else the line number from 0.
        quoting: one of `QUOTING`; None: double quotes in CSV, none in TSV.
        template: makes the text of each record, instead of `column`.
        keep: which columns records carry for their results.

    Raises:
        UsageError: an input is missing, a directory, or of an unknown format.
    """

    def has_records(name: str) -> bool:
        return not names_media(name, task, format)

    names = expand(names)
    files = [name for name in names if not has_records(name)]
    if template is not None and files:
        same = ", or the same text for all of them as -p text=TEXT" if "text" in (task.params or {}) else ""
        raise UsageError(
            f"{files[0]}: --template makes texts from columns, and a file has none. Pass a list of the files with "
            f"their columns{same}."
        )
    sources = iter(find_sources(list(filter(has_records, names)), format, quoting))
    several = len(names) > 1
    builder = partial(
        RecordBuilder,
        task=task,
        column=column,
        id_column=id_column,
        multiple_inputs=several,
        template=template,
        keep=keep,
    )
    return Inputs(task, tuple(builder(next(sources)) if has_records(name) else name for name in names), keep)


def names_files(builder: RecordBuilder) -> bool:
    """Whether the first records of a source name files.

    Raises:
        UsageError: it cannot be read, or is empty.
    """
    if not builder.task.media:
        return False
    with closing(_records(builder, SAMPLE_BYTES)) as records:
        return any(builder.task.file_fields(record.input) for record in islice(records, SAMPLE_RECORDS))


def _records(builder: RecordBuilder, max_bytes: int) -> Generator[Record, None, None]:
    _check_options(builder)
    found = False
    records = _records_of_format(builder, max_bytes)
    for record in refuse_unknown_columns(records) if builder.template else records:
        found = True
        yield record
    if not found:
        raise UsageError(f"Empty input: {builder.source.label} contains no records.")


def _records_of_format(builder: RecordBuilder, max_bytes: int) -> Iterator[Record]:
    if builder.source.format == "parquet":
        from common.inputs.parquet import parquet_records

        yield from parquet_records(builder, max_bytes)
        return
    with open_bytes(builder.source) as stream:
        if builder.source.format == "txt":
            yield from text_records(builder, stream, max_bytes)
        elif builder.source.format == "jsonl":
            yield from json_records(builder, stream, max_bytes)
        elif builder.source.format == "json":
            yield from json_file_records(builder, stream, max_bytes)
        else:
            delimiter = "\t" if builder.source.format == "tsv" else ","
            yield from csv_records(builder, stream, max_bytes, delimiter)


def _check_options(builder: RecordBuilder) -> None:
    """Refuse options and tasks that need columns for plain text."""
    source: Source = builder.source
    if source.format != "txt":
        return
    if builder.column or builder.id_column:
        option = "--column" if builder.column else "--id-column"
        raise UsageError(f"{source.label} is plain text without columns; {option} is for jsonl, csv and parquet.")
    if builder.template and (name := builder.template.missing([builder.field])) is not None:
        raise UsageError(f"{source.label} has no column {name!r} (--template); plain text has: {builder.field}.")
    if not builder.task.primary_field:
        raise UsageError(
            f"{builder.task.name} needs {builder.task.required_fields}, but {source.label} is plain text, with one "
            "text per line. Use a jsonl, csv or parquet file (for standard input, set --format)."
        )
