"""Part files of `-o DIR/`: one for each chunk, `part-00000.parquet` or `.jsonl`.

A part holds what the user asked for: id, input, output or error. It also stores the outcomes of its chunk, so it can
be read back into a payload of outcomes.
"""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import PayloadError
from common.inputs.arrow_values import row_sizes
from common.inputs.parquet import dictionary_columns, open_parquet
from common.json_codec import to_json
from common.output_types import OutputForm
from common.payloads.arrays import column_array
from common.payloads.codec import MAX_EXPANDED, MAX_ROWS, decode_failure, encode_outcomes, overlay
from common.records import Failure, Json, Outcome, Record
from common.results import COLUMNS, LOST, ResultRow, as_text, cells, to_line

FORMATS = ("parquet", "jsonl")

#: What reading a damaged or foreign file raises.
_DECODE_ERRORS = (pa.ArrowException, OSError, ValueError, RecursionError, AttributeError, TypeError, KeyError)
#: Parquet metadata of outputs without a type: JSON text, or plain text if all of them are texts.
_FORM, _JSON, _TEXT = b"hugqueue.output", b"json", b"text"


def part_name(chunk: int, format: str) -> str:
    """Return the name of a chunk's part."""
    return f"part-{chunk:05d}.{format}"


def chunk_rows(
    records: Sequence[Record] | None, outcomes: Sequence[bytes | None], *, arrays: bool = False
) -> list[ResultRow]:
    """Return the rows of a chunk from its records and the payloads of its commits, oldest first.

    Args:
        records: of the chunk; None if they cannot be read: rows then have the ids of the outcomes, and no input.
        outcomes: payloads; None for a lost one.
        arrays: return vectors as numpy arrays, for writers.

    Raises:
        PayloadError: one of them is not a payload of outcomes.
    """
    found = overlay([payload for payload in outcomes if payload is not None], arrays=arrays)
    if records is None:
        return [ResultRow(id_, None, outcome) for _, (id_, outcome) in sorted(found.items())]
    absent = LOST if outcomes else None
    return [
        ResultRow(record.id, record.input, found[position][1] if position in found else absent)
        for position, record in enumerate(records)
    ]


def row_schema(kind: Any) -> pa.Schema:
    """Return the schema of rows in Parquet; `kind` is the Arrow type of an output, or None for text and JSON text."""
    output = kind if kind is not None else pa.string()
    kinds = (pa.string(), pa.string(), output, pa.string(), pa.string(), pa.bool_())
    return pa.schema(list(zip(COLUMNS, kinds, strict=True)))


def cells_to_table(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    """Return the table of some rows, each the cells of `common.results.cells`.

    Raises:
        pyarrow.ArrowException, TypeError, ValueError: an output is not of the schema's type.
    """
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    arrays = [column_array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.table(arrays, schema=schema)


def encode_part(rows: Sequence[ResultRow], kind: Any, format: str) -> bytes:
    """Return the bytes of a part; `kind` is the Arrow type of an output, or None for text and JSON text."""
    if format == "jsonl":
        return b"".join(to_line(row).encode() + b"\n" for row in rows)
    form, outputs = _outputs(rows, kind)
    schema = row_schema(kind).with_metadata({_FORM: form} if form else None)
    table = cells_to_table([cells(row, output) for row, output in zip(rows, outputs, strict=True)], schema)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def _outputs(rows: Sequence[ResultRow], kind: Any) -> tuple[bytes | None, list[Any]]:
    """Return the form of untyped outputs, and the outputs in it."""
    if kind is not None:
        return None, [row.output for row in rows]
    if all(row.error or isinstance(row.output, str) for row in rows):
        return _TEXT, [as_text(row.output) for row in rows]
    return _JSON, [None if row.error else to_json(row.output) for row in rows]


def part_schema(data: bytes, format: str) -> Json:
    """Return the columns of a part and their types, for the manifest."""
    if format == "jsonl":
        return {"id": "any", "input": "any", "output": "any", "error": "code, message", "truncated": "bool"}
    return {field.name: str(field.type) for field in pq.read_schema(pa.py_buffer(data))}


def decode_part(data: bytes, format: str, form: OutputForm | None = None) -> bytes:
    """Return the outcomes of a part as a payload that `common.payloads.codec.decode_outcomes` decodes.

    Args:
        data: the bytes of the part.
        format: one of `FORMATS`.
        form: the declared form of its outputs; JSON lines do not say it.

    Raises:
        PayloadError: the bytes are not a part, or one of other outputs.
    """
    try:
        ids, outcomes, kind = _from_lines(data, form) if format == "jsonl" else _from_parquet(data)
        return encode_outcomes(range(len(ids)), ids, outcomes, kind)
    except _DECODE_ERRORS as error:
        raise PayloadError(f"not a part ({format}): {str(error) or type(error).__name__:.500}") from error


def _from_lines(data: bytes, form: OutputForm | None) -> tuple[list[Json], list[Outcome], Any]:
    lines = [json.loads(line) for line in data.splitlines()]
    outputs = [line.get("output") for line in lines]
    kind = None
    if form is not None:
        outputs = list(map(form.from_json, outputs))
        kind = form.arrow_type(next(filter(None, outputs), None))
    outcomes = [
        _outcome(output, line.get("error"), line.get("truncated") is True)
        for line, output in zip(lines, outputs, strict=True)
    ]
    return [line.get("id") for line in lines], outcomes, kind


def _from_parquet(data: bytes) -> tuple[list[Json], list[Outcome], Any]:
    wanted = ["id", "output", "error_code", "error_message", "truncated"]
    file = open_parquet(pa.py_buffer(data))
    metadata = file.metadata
    _check_size(sum(metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups)), metadata.num_rows)
    texts, declared = dictionary_columns(file, None, wanted), file.schema_arrow.field("output").type
    file = open_parquet(pa.py_buffer(data), read_dictionary=texts)  # one long text may be the value of all rows
    table = file.read(columns=wanted, use_threads=False)
    table.validate(full=True)
    _check_size(sum(int(row_sizes(column).sum()) for column in table.columns), len(table))
    form = (table.schema.metadata or {}).get(_FORM)
    ids, outputs, codes, messages, truncated = (table[name].to_pylist() for name in wanted)
    if form == _JSON:
        outputs = [None if output is None else json.loads(output) for output in outputs]
    kind = declared if form is None else None
    failures = map(decode_failure, codes, messages)
    return ids, list(map(Outcome, outputs, failures, map(bool, truncated))), kind


def _check_size(size: int, rows: int) -> None:
    if size > MAX_EXPANDED or rows > MAX_ROWS:
        raise ValueError(f"{size:,} bytes in {rows:,} rows, more than a part may have")


def _outcome(output: Json, error: Json, truncated: bool) -> Outcome:
    return Outcome(output, Failure(str(error["code"]), str(error["message"])) if error else None, truncated)
