"""Results of a job as the records of another one: ids and columns are kept, and what failed fails again."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import pyarrow as pa

from common.inputs.arrow_rows import ArrowRow, ArrowRows
from common.inputs.job_split import JobSplit, results_builder
from common.inputs.record_builder import RecordBuilder
from common.inputs.templated_records import limit_text
from common.jobs import JobSpec
from common.json_codec import as_text
from common.own_columns import Keep, Own
from common.payloads.arrays import column_array, text_array
from common.payloads.own_columns import take_rows
from common.records import Failure, Record
from common.results import LOST, NOT_RUN, ResultLayout, ResultRow
from common.tasks import Task
from common.template import Template

#: Characters of the texts that a template makes of one chunk.
_MAX_TEXT = 128 * 1024**2


def records_of_results(
    rows: Sequence[ResultRow],
    first: JobSpec,
    split: JobSplit,
    task: Task,
    template: Template | None,
    keep: Keep,
    output_type: Any = None,
) -> list[Record]:
    """Return the records that are made of the results of a chunk.

    Args:
        rows: the results.
        first: the job that they are of.
        split: says how they become records.
        task: of the job that reads them.
        template: of that job, which makes the texts.
        keep: which columns its results repeat.
        output_type: the Arrow type of the outputs; None if they are JSON.
    """
    layout = ResultLayout.of(first)
    builder = results_builder(first.id, task, split.column, split.id_column, template)
    owns = _own_columns(rows, layout, first, split.output_as, keep, output_type)
    records: Iterator[Record] = (_record(row, number, builder, layout) for number, row in enumerate(rows))
    if template is not None:
        records = limit_text(records, builder.source, _MAX_TEXT)
    return [replace(record, own=own) for record, own in zip(records, owns, strict=True)]


def _record(row: ResultRow, number: int, builder: RecordBuilder, layout: ResultLayout) -> Record:
    if row.error is not None:
        return Record(row.id, None, _failure(row, row.error, builder.source.label))
    record = builder.record(number, number + 1, {**layout.own(row), layout.keep.output: row.output})
    return record if builder.id_column else replace(record, id=row.id)


def _failure(row: ResultRow, error: Failure, job: str) -> Failure:
    if row.outcome is LOST:
        return Failure(error.code, f"its outcome in {job} is gone; `producer retry` of that job and of this one helps")
    what = "did not run" if error is NOT_RUN else f"failed: {error.code}: {error.message}"
    return Failure("input_failed", f"this record {what}, in {job}, whose results are the input")


def _own_columns(
    rows: Sequence[ResultRow], layout: ResultLayout, first: JobSpec, output_as: str, keep: Keep, output_type: Any
) -> list[Own]:
    """Return the columns that each record keeps: its own and the output, in their Arrow types where it has such."""
    found: list[Own] = []
    for table, group in groupby(rows, lambda row: row.own.rows if isinstance(row.own, ArrowRow) else None):
        part = list(group)
        if table is None:
            found += [keep.own(_cells(row, layout, first, output_as)) for row in part]
        else:
            found += _table_rows(table, part, output_as, keep, output_type)
    return found


def _cells(row: ResultRow, layout: ResultLayout, first: JobSpec, output_as: str) -> Mapping[str, Any]:
    own = layout.own(row)
    if row.own is None and row.error and not isinstance(row.input, Mapping):
        own = {name: cell for name, cell in own.items() if name in first.columns}  # not an excerpt of what is no text
    return {**own, output_as: row.output}


def _table_rows(table: ArrowRows, rows: Sequence[ResultRow], output_as: str, keep: Keep, output_type: Any) -> list[Own]:
    batch = take_rows(table.batch, [row.own.number for row in rows if isinstance(row.own, ArrowRow)])
    outputs = [row.output for row in rows]
    typed = text_array(list(map(as_text, outputs))) if output_type is None else column_array(outputs, output_type)
    columns = {**dict(zip(batch.schema.names, batch.columns, strict=True)), output_as: typed}
    types = {**table.types, output_as: typed.type}
    names = keep.chosen(columns)
    if not names:
        return [{}] * len(rows)
    kept = ArrowRows(pa.RecordBatch.from_pydict({n: columns[n] for n in names}), {n: types[n] for n in names})
    return [ArrowRow(kept, number) for number in range(len(rows))]
