"""Part files of `-o DIR/`: one for each chunk, `part-00000.parquet` or `.jsonl`.

A part holds the results of its chunk: own columns, id, output or error. It also stores the outcomes, so it can be read
back into a payload of outcomes.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import PayloadError
from common.inputs.arrow_rows import json_cells
from common.inputs.arrow_values import row_sizes
from common.inputs.parquet import dictionary_columns, open_parquet
from common.json_codec import as_text, to_json
from common.output_types import OutputForm
from common.payloads.codec import MAX_EXPANDED, MAX_ROWS, decode_failure, encode_outcomes
from common.payloads.result_tables import ResultTable
from common.records import Json, Outcome
from common.results import ResultLayout, ResultRow

FORMATS = ("parquet", "jsonl")

#: What reading a damaged or foreign file raises.
_DECODE_ERRORS = (pa.ArrowException, OSError, ValueError, RecursionError, AttributeError, TypeError, KeyError)
#: Parquet metadata of outputs without a type: JSON text, or plain text if all of them are texts.
_FORM, _JSON, _TEXT = b"hugqueue.output", b"json", b"text"


def part_name(chunk: int, format: str) -> str:
    """Return the name of a chunk's part."""
    return f"part-{chunk:05d}.{format}"


def encode_part(rows: Sequence[ResultRow], table: ResultTable, format: str) -> bytes:
    """Return the bytes of a part.

    Raises:
        PayloadError: the rows or the columns are not what a job has.
    """
    try:
        if format == "jsonl":
            return b"".join(table.layout.to_line(row).encode() + b"\n" for row in rows)
        return _encode_rows(rows, table)
    except MemoryError:  # of Arrow too
        raise
    except (*_DECODE_ERRORS, OverflowError) as error:
        raise PayloadError(f"not results of a job: {str(error) or type(error).__name__:.500}") from error


def _encode_rows(rows: Sequence[ResultRow], table: ResultTable) -> bytes:
    form: bytes | None
    to_cell: Callable[[Json], str | None]
    if table.is_typed:
        form, to_cell = None, to_json
    elif all(row.error or isinstance(row.output, str) for row in rows):
        form, to_cell = _TEXT, as_text
    else:
        form, to_cell = _JSON, to_json
    _, found = table.fit(rows, to_cell)
    sink = pa.BufferOutputStream()
    pq.write_table(found.replace_schema_metadata({_FORM: form} if form else None), sink, compression="zstd")
    return bytes(sink.getvalue())


def part_schema(data: bytes, format: str) -> Json:
    """Return the columns of a part and their types, for the manifest; None for JSON lines, which have no types."""
    return None if format == "jsonl" else {f.name: str(f.type) for f in pq.read_schema(pa.py_buffer(data))}


def decode_part(data: bytes, format: str, layout: ResultLayout, form: OutputForm | None = None) -> bytes:
    """Return the outcomes of a part as a payload that `common.payloads.codec.decode_outcomes` decodes.

    Args:
        data: the bytes of the part.
        format: one of `FORMATS`.
        layout: of its job's results.
        form: the declared form of its outputs; JSON lines do not say it.

    Raises:
        PayloadError: the bytes are not a part, or one of other outputs.
    """
    try:
        ids, outcomes, kind = _from_lines(data, layout, form) if format == "jsonl" else _from_parquet(data, layout)
        return encode_outcomes(range(len(ids)), ids, outcomes, kind)
    except _DECODE_ERRORS as error:
        raise PayloadError(f"not a part ({format}): {str(error) or type(error).__name__:.500}") from error


def _from_lines(data: bytes, layout: ResultLayout, form: OutputForm | None) -> tuple[list[Json], list[Outcome], Any]:
    lines = [json.loads(line) for line in data.splitlines()]
    outputs = [None if "error_code" in line else line.get(layout.keep.output) for line in lines]
    kind = None
    if form is not None:
        outputs = list(map(form.from_json, outputs))
        kind = form.arrow_type(next(filter(None, outputs), None))
    failures = [decode_failure(line.get("error_code"), line.get("error_message")) for line in lines]
    truncated = [line.get("truncated") is True for line in lines]
    ids = [line.get(layout.id_column_of(line)) for line in lines]
    return ids, list(map(Outcome, outputs, failures, truncated)), kind


def _from_parquet(data: bytes, layout: ResultLayout) -> tuple[list[Json], list[Outcome], Any]:
    file = open_parquet(pa.py_buffer(data))
    schema, metadata = file.schema_arrow, file.metadata
    wanted = [layout.keep.output, "error_code", "error_message", "truncated"]
    id_column = layout.id_column_of(schema.names)
    wanted += [id_column] if id_column else []
    _check_size(sum(metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups)), metadata.num_rows)
    texts, declared = dictionary_columns(file, None, wanted), schema.field(layout.keep.output).type
    file = open_parquet(pa.py_buffer(data), read_dictionary=texts)  # one long text may be the value of all rows
    table = file.read(columns=wanted, use_threads=False)
    table.validate(full=True)
    _check_size(sum(int(row_sizes(column).sum()) for column in table.columns), len(table))
    form = (table.schema.metadata or {}).get(_FORM)
    outputs, codes, messages, truncated = (table[name].to_pylist() for name in wanted[:4])
    ids = json_cells(table[id_column].combine_chunks()) if id_column else [None] * len(table)
    if form == _JSON:
        outputs = [None if output is None else json.loads(output) for output in outputs]
    kind = declared if form is None else None
    failures = map(decode_failure, codes, messages)
    return ids, list(map(Outcome, outputs, failures, map(bool, truncated))), kind


def _check_size(size: int, rows: int) -> None:
    if size > MAX_EXPANDED or rows > MAX_ROWS:
        raise ValueError(f"{size:,} bytes in {rows:,} rows, more than a part may have")
