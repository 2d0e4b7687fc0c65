"""Parts that workers write: what the user reads in them, and what comes back when hugqueue reads them again."""

import json
from pathlib import Path
from typing import Any

import datasets
import pandas
import polars
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from common.errors import PayloadError
from common.output_types import OutputForm
from common.own_columns import TEXT
from common.payloads.chunk_rows import chunk_rows
from common.payloads.codec import encode_outcomes, output_type, overlay
from common.payloads.part_files import FORMATS, decode_part, encode_part, part_name
from common.payloads.result_tables import ResultTable
from common.records import Failure, Outcome, Record
from common.results import ResultLayout, ResultRow
from common.task_outputs import embedding_form
from common.tasks import TASKS
from tests.support.embeddings import embedding_type

BAD = Failure("bad_json", "line 3: no JSON")
VECTOR = pa.list_(pa.float32(), 2)
PIECES = embedding_type(2, split_tokens=8, precision="int8")

CASES: dict[str, tuple[list[Outcome], Any]] = {
    "objects": (
        [Outcome([{"label": "참", "score": 0.5}]), Outcome(failure=BAD), Outcome({"a": None}, None, True)],
        None,
    ),
    "texts": ([Outcome("123"), Outcome(failure=BAD), Outcome("{")], None),
    "mixed": ([Outcome("123"), Outcome(123), Outcome(None)], None),
    "vectors": ([Outcome([0.5, 1.0]), Outcome(failure=BAD), Outcome([2.0, 3.0], None, True)], VECTOR),
    "int8": ([Outcome([-128, 127]), Outcome(failure=BAD), Outcome([0, 1])], embedding_form({"precision": "int8"})),
    "uint8": ([Outcome([0, 255]), Outcome(failure=BAD), Outcome([0, 1])], embedding_form({"precision": "uint8"})),
    "float16": (
        [Outcome([0.5, -1.0]), Outcome(failure=BAD), Outcome([0.0, 2.0])],
        embedding_form({"precision": "float16"}),
    ),
    "pieces": (
        [
            Outcome([{"start": 0, "end": 5, "vector": [1, -2]}, {"start": 4, "end": 9, "vector": [3, 4]}]),
            Outcome(failure=BAD),
            Outcome([{"start": 0, "end": 3, "vector": [5, 6]}]),
        ],
        embedding_form({"split_tokens": 8, "precision": "int8"}),
    ),
    "all failed": ([Outcome(failure=BAD)] * 3, None),
    "labels": (
        [Outcome({"label": "참", "score": 0.1}), Outcome(failure=BAD), Outcome({"label": "x", "score": None})],
        TASKS["text-classification"].output_form({}),
    ),
    "segments": (
        [Outcome([{"label": "cat", "score": None, "mask": b"\x89PNG\0"}]), Outcome(failure=BAD), Outcome([])],
        TASKS["image-segmentation"].output_form({}),
    ),
    "typed texts": ([Outcome("123"), Outcome(failure=BAD), Outcome("null")], TASKS["translation"].output_form({})),
    "embeddings": (
        [Outcome([0.1, 2.5]), Outcome(failure=BAD), Outcome([1e-9, -3.0])],
        TASKS["embedding"].output_form({}),
    ),
    "typed failures": ([Outcome(failure=BAD)] * 3, TASKS["text-classification"].output_form({})),
    "failures of unknown length": ([Outcome(failure=BAD)] * 3, TASKS["embedding"].output_form({})),
}
RECORDS = [Record(7, "one [MASK]"), Record("b", {"text": "two", "text_pair": "x"}), Record(2, "셋")]


LAYOUT = ResultLayout()


def table(kind: Any) -> ResultTable:
    return ResultTable(LAYOUT, {"text": TEXT, "text_pair": TEXT}, kind)


def payload(outcomes: list[Outcome], kind: Any) -> bytes:
    return encode_outcomes(range(len(outcomes)), [record.id for record in RECORDS], outcomes, kind)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_outcomes_come_back_from_a_part(case: str, format: str) -> None:
    outcomes, declared = CASES[case]
    form = declared if isinstance(declared, OutputForm) else None
    kind = form.arrow_type(outcomes[0].output) if form else declared
    written = payload(outcomes, kind)
    outcomes = [outcome for _, outcome in overlay([written]).values()]  # numbers of 32 bits have changed
    part = encode_part(chunk_rows(RECORDS, [written]), table(kind), format)
    again = decode_part(part, format, LAYOUT, form)
    if form:
        assert output_type(again) == kind
    found = overlay([again])
    assert [found[position][1] for position in range(3)] == outcomes
    second = encode_part(chunk_rows(RECORDS, [again]), table(kind), format)
    assert second == part  # as a retry writes it


def test_a_part_in_parquet_is_what_its_user_expects() -> None:
    written = payload(*CASES["vectors"])
    part = encode_part(chunk_rows(RECORDS, [written]), table(VECTOR), "parquet")
    found = pq.read_table(pa.py_buffer(part)).to_pydict()
    assert found["id"] == ["7", "b", "2"]
    assert found["text"] == ["one [MASK]", "two", "셋"]
    assert found["text_pair"] == [None, "x", None]
    assert found["output"] == [[0.5, 1.0], None, [2.0, 3.0]]
    assert found["error_code"] == [None, "bad_json", None]
    assert found["truncated"] == [False, False, True]


def test_a_part_of_json_lines_has_the_lines_of_any_result() -> None:
    written = payload(*CASES["objects"])
    part = encode_part(chunk_rows(RECORDS, [written]), table(None), "jsonl")
    assert [json.loads(line) for line in part.splitlines()] == [
        {"text": "one [MASK]", "id": 7, "output": [{"label": "참", "score": 0.5}]},
        {"text": "two", "text_pair": "x", "id": "b", "error_code": "bad_json", "error_message": BAD.message},
        {"text": "셋", "id": 2, "output": {"a": None}, "truncated": True},
    ]


def test_a_later_round_replaces_what_had_failed() -> None:
    first = payload(*CASES["objects"])
    second = encode_outcomes([1], ["b"], [Outcome("now")], None)
    part = encode_part(chunk_rows(RECORDS, [first, second]), table(None), "parquet")
    outcomes = [outcome for _, outcome in overlay([decode_part(part, "parquet", LAYOUT)]).values()]
    assert [outcome.failure for outcome in outcomes] == [None] * 3
    assert outcomes[1].output == "now"


@pytest.mark.parametrize("case", ["vectors", "int8", "uint8", "float16", "pieces"])
def test_a_part_of_vectors_in_parquet_has_their_type(case: str) -> None:
    outcomes, form = CASES[case]
    kind = VECTOR if case == "vectors" else form.arrow_type(outcomes[0].output)
    part = encode_part(chunk_rows(RECORDS, [payload(outcomes, kind)], arrays=True), table(kind), "parquet")
    found = pq.read_table(pa.py_buffer(part))
    assert found.schema.field("output").type == kind
    assert found["output"].to_pylist() == [outcome.output for outcome in outcomes]


@pytest.mark.parametrize("values", [[300, 1], [1.5, 1], [[1], [2]], [1, 2, 3], "ab", [None, 1]])
def test_numbers_that_a_vector_cannot_hold_are_refused(values: Any) -> None:
    for kind, value in ((pa.list_(pa.int8(), 2), values), (PIECES, [{"start": 0, "end": 1, "vector": values}])):
        with pytest.raises((TypeError, ValueError, OverflowError, pa.ArrowException)):
            encode_outcomes([0], [0], [Outcome(value)], kind)


@pytest.mark.parametrize("value", [7, ["x"], [7], {"start": 0}])
def test_outputs_that_are_not_pieces_are_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError, pa.ArrowException)):
        encode_outcomes([0], [0], [Outcome(value)], PIECES)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("data", [b"\xff\0", b"PAR1\0\0PAR1", b"[1]\n", b'{"output": 1, "error_code": 3}', b"[" * 9999])
def test_bytes_that_are_not_a_part_are_refused(format: str, data: bytes) -> None:
    with pytest.raises(PayloadError, match="not a part"):
        decode_part(data, format, LAYOUT)


def parquet(schema: pa.Schema, **columns: list[Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=schema), sink)
    return bytes(sink.getvalue())


COLUMNS = {"id": pa.string(), "output": pa.string(), "error_code": pa.string(), "error_message": pa.string()}


def test_a_part_that_somebody_wrote_over_is_refused() -> None:
    sound = pa.schema(COLUMNS | {"truncated": pa.bool_()}, metadata={"hugqueue.output": "json"})
    row: dict[str, list[Any]] = {name: [None] for name in sound.names}
    assert overlay([decode_part(parquet(sound, **row), "parquet", LAYOUT)])
    odd = sound.set(1, pa.field("output", pa.list_(pa.string())))
    many = {name: pa.nulls(2_000_000, sound.field(name).type) for name in sound.names}
    for data in (
        parquet(sound, **row | {"output": ["{"]}),
        parquet(sound, **row | {"output": ["[" * 100_000]}),
        parquet(odd, **row | {"output": [["x"]]}),
        parquet(sound, **many),
        parquet(pa.schema(COLUMNS), **{name: [None] for name in COLUMNS}),
    ):
        with pytest.raises(PayloadError, match="not a part"):
            decode_part(data, "parquet", LAYOUT)
    with pytest.raises(PayloadError, match="not a part"):
        decode_part(b'{"id": 1, "error_code": "\\ud800", "error_message": ""}\n', "jsonl", LAYOUT)


@pytest.mark.parametrize("case", ["labels", "embeddings", "segments", "typed texts", "int8", "float16", "pieces"])
def test_every_reader_takes_a_directory_with_a_part_of_failures_alone(case: str, tmp_path: Path) -> None:
    outcomes, form = CASES[case]
    kind = form.arrow_type(outcomes[0].output)
    for chunk, some in enumerate([[Outcome(failure=BAD)] * 3, outcomes]):
        part = encode_part(chunk_rows(RECORDS, [payload(some, kind)]), table(kind), "parquet")
        (tmp_path / part_name(chunk, "parquet")).write_bytes(part)
    expected = [None] * 3 + [outcome.output for _, outcome in overlay([payload(outcomes, kind)]).values()]
    assert ds.dataset(tmp_path).to_table()["output"].to_pylist() == expected
    assert polars.scan_parquet(tmp_path / "*.parquet").collect()["output"].to_list() == expected
    assert pandas.read_parquet(tmp_path)["output"].isna().tolist() == [value is None for value in expected]
    read = datasets.Dataset.from_parquet(
        sorted(str(path) for path in tmp_path.glob("*.parquet")), cache_dir=str(tmp_path / "cache")
    )
    assert read["output"][:] == expected


def test_a_part_is_named_by_its_chunk() -> None:
    assert part_name(7, "parquet") == "part-00007.parquet"
    assert part_name(123456, "jsonl") == "part-123456.jsonl"


def test_vectors_as_arrays_are_those_as_lists():
    kind = pa.list_(pa.float32(), 3)
    outcomes = [Outcome([1.0, 2.0, 3.0]), Outcome(failure=Failure("no", "why")), Outcome([0.5, 0.0, -1.0])]
    first = encode_outcomes([0, 1, 2], ["a", "b", "c"], outcomes, kind)
    again = encode_outcomes([1], ["b"], [Outcome([4.0, 5.0, 6.0])], kind)
    for payloads in ([first], [first, again]):
        lists, arrays = (overlay(payloads, arrays=arrays) for arrays in (False, True))
        assert [None if o.output is None else o.output.tolist() for _, o in arrays.values()] == [
            o.output for _, o in lists.values()
        ]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["id", "custom_id", "key"])
def test_the_ids_of_a_part_are_those_of_its_records(format: str, name: str) -> None:
    """They are all that is left of the records if their file is gone."""
    layout = ResultLayout(id_column="key" if name == "key" else None)
    rows = [ResultRow(f"r{n}", "a", Outcome("b"), {"text": "a", name: f"r{n}"}) for n in range(2)]
    part = encode_part(rows, ResultTable(layout, {"text": TEXT, name: TEXT}, pa.string()), format)
    form = TASKS["translation"].output_form({})
    assert [id_ for id_, _ in overlay([decode_part(part, format, layout, form)]).values()] == ["r0", "r1"]
