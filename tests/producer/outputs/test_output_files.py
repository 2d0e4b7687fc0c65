"""Outputs read back with the libraries that users read them with; failures, cut texts and odd letters among them."""

import csv
import gzip
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import HugqueueError, UsageError
from common.jobs import JobSpec
from common.own_columns import JSON, TEXT
from common.records import Failure, Outcome
from common.results import ResultLayout
from producer.outputs import ResultRow, open_output
from producer.outputs.targets import parse_target

TEXTS = {"text": TEXT}
SPEC = JobSpec("0" * 12, "fill-mask", keep=None, columns=TEXTS)
EMBEDDING = JobSpec("0" * 12, "embedding", keep=None, columns=TEXTS)
NO_MASK = Failure("no_mask", "the text has no [MASK]")
ODD = 'comma, "quote"\r, \n newline, 한국어 😀 \ud800'

ROWS = [
    ResultRow("a", "서울은 [MASK]", Outcome([{"token_str": "도시", "score": 0.5}])),
    ResultRow(7, ODD, Outcome(failure=NO_MASK)),
    ResultRow("7", {"text": "x", "targets": ["y"]}, Outcome("a text", truncated=True)),
    ResultRow(None, "never run", None),
    ResultRow(["odd", 1], "nan", Outcome(float("nan"))),
]


def write(path: Path, rows: list[ResultRow], spec=SPEC, **options) -> None:
    with open_output(path, spec, spec.columns | {"targets": JSON}, **options) as writer:
        writer.write_all(iter(rows))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_jsonl_has_a_line_for_each_record(tmp_path, name):
    write(tmp_path / name, ROWS)
    data = (tmp_path / name).read_bytes()
    lines = (gzip.decompress(data) if name.endswith("gz") else data).decode().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"text": "서울은 [MASK]", "id": "a", "output": [{"token_str": "도시", "score": 0.5}]},
        {"text": ODD, "id": 7, "error_code": "no_mask", "error_message": "the text has no [MASK]"},
        {"text": "x", "targets": ["y"], "id": "7", "output": "a text", "truncated": True},
        {"text": "never run", "id": None, "error_code": "not_run", "error_message": lines_message(lines[3])},
        {"text": "nan", "id": ["odd", 1], "output": None},
    ]
    assert "서울은" in lines[0]
    assert lines == [ResultLayout().to_line(row) for row in ROWS]


def lines_message(line: str) -> str:
    message = json.loads(line)["error_message"]
    assert "before this record was run" in message
    return message


def test_csv_safe_escapes_what_a_spreadsheet_would_run(tmp_path):
    cells = ["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3", "\t=1", "\r=1"]
    plain = ["text", "-0.5", "+3e2", "'=quoted", "a=b"]
    rows = [ResultRow(text, text, Outcome(text)) for text in (*cells, *plain)]
    write(tmp_path / "a.csv", rows, csv_safe=True)
    read = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_bytes().decode(), newline="")))
    expected = [f"'{cell}" for cell in cells] + plain
    assert [(row["id"], row["text"], row["output"]) for row in read] == [(text,) * 3 for text in expected]


@pytest.mark.parametrize("output", [None, "a.jsonl", "parts/"])
def test_csv_safe_is_only_for_csv(output):
    with pytest.raises(UsageError, match="--csv-safe"):
        parse_target(output, None, csv_safe=True)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_csv_comes_back_with_scalars_as_they_are_and_the_rest_as_json(tmp_path, name):
    write(tmp_path / name, ROWS)
    data = (tmp_path / name).read_bytes()
    text = (gzip.decompress(data) if name.endswith("gz") else data).decode()
    rows = list(csv.DictReader(text.splitlines(keepends=True)))
    assert list(rows[0]) == ["text", "targets", "id", "output", "error_code", "error_message", "truncated"]
    assert [r["id"] for r in rows] == ["a", "7", "7", "", '["odd", 1]']
    assert rows[1]["text"] == ODD.replace("\ud800", r"\ud800")
    assert [r["output"] for r in rows] == ['[{"token_str": "도시", "score": 0.5}]', "", "a text", "", "null"]
    assert [r["error_code"] for r in rows] == ["", "no_mask", "", "not_run", ""]
    assert rows[1]["error_message"] == NO_MASK.message
    assert [r["truncated"] for r in rows] == ["false", "false", "true", "false", "false"]
    assert text.startswith("text,targets,id,output,error_code,error_message,truncated\n서울은 [MASK],,a,")


def test_parquet_of_a_task_without_a_type_holds_json_text(tmp_path):
    write(tmp_path / "a.parquet", ROWS)
    table = pq.read_table(tmp_path / "a.parquet").to_pydict()
    assert table["id"] == ["a", "7", "7", None, '["odd", 1]']
    assert table["text"][1:3] == [ODD.replace("\ud800", r"\ud800"), "x"]
    assert table["targets"] == [None, None, '["y"]', None, None]
    assert table["output"] == ['[{"token_str": "도시", "score": 0.5}]', None, "a text", None, "null"]
    assert table["error_code"] == [None, "no_mask", None, "not_run", None]
    assert table["truncated"] == [False, False, True, False, False]


@pytest.mark.parametrize("kind", [pa.list_(pa.float32(), 3), pa.list_(pa.float32())])
def test_parquet_of_a_typed_output_keeps_the_type(tmp_path, kind):
    rows = [ResultRow(0, "a", Outcome([0.5, 1.0, -2.0])), ResultRow(1, "b", Outcome(failure=NO_MASK))]
    write(tmp_path / "a.parquet", rows, EMBEDDING, output_type=kind)
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.schema.field("output").type == kind
    assert table["output"].to_pylist() == [[0.5, 1.0, -2.0], None]


LABEL = pa.struct({"label": pa.string(), "score": pa.float64()})


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_bytes().decode(), newline="")))


def test_csv_has_a_column_for_each_field_of_a_flat_struct(tmp_path):
    rows = [
        ResultRow(0, "a", Outcome({"label": "=good", "score": 0.5})),
        ResultRow(1, "b", Outcome(failure=NO_MASK)),
        ResultRow(2, "c", Outcome({"label": "bad", "score": None})),
    ]
    write(tmp_path / "a.csv", rows, output_type=LABEL, csv_safe=True)
    read = read_csv(tmp_path / "a.csv")
    assert list(read[0])[2:5] == ["id", "output_label", "output_score"]
    assert [(row["output_label"], row["output_score"]) for row in read] == [("'=good", "0.5"), ("", ""), ("bad", "")]
    assert [row["error_code"] for row in read] == ["", "no_mask", ""]


def test_csv_keeps_a_struct_in_one_column_where_the_record_has_a_column_of_that_name(tmp_path):
    spec = JobSpec("0" * 12, "text-classification", keep=None, columns={"output_label": TEXT})
    row = ResultRow(0, "a", Outcome({"label": "good", "score": 0.5}), {"output_label": "mine"})
    write(tmp_path / "a.csv", [row], spec, output_type=LABEL)
    [read] = read_csv(tmp_path / "a.csv")
    assert (read["output_label"], read["output"]) == ("mine", '{"label": "good", "score": 0.5}')


@pytest.mark.parametrize(
    ("kind", "output", "cell"),
    [
        (pa.list_(LABEL), [{"label": "a", "score": 0.5}], '[{"label": "a", "score": 0.5}]'),
        (pa.struct({"a": pa.list_(pa.int64())}), {"a": [1]}, '{"a": [1]}'),
        (pa.string(), "a text", "a text"),
        (pa.binary(), b"png", "cG5n"),
        (pa.list_(pa.float32(), 2), [0.5, 1.0], "[0.5, 1.0]"),
    ],
)
def test_csv_has_one_column_for_any_other_output(tmp_path, kind, output, cell):
    write(tmp_path / "a.csv", [ResultRow(0, "a", Outcome(output))], output_type=kind)
    assert read_csv(tmp_path / "a.csv")[0]["output"] == cell


def test_bytes_are_base64_in_json_and_csv_and_bytes_in_parquet(tmp_path):
    kind, output = pa.struct({"depth": pa.binary()}), {"depth": b"\x89PNG"}
    row = ResultRow(0, "a", Outcome(output))
    write(tmp_path / "a.csv", [row], output_type=kind)
    write(tmp_path / "a.parquet", [row], output_type=kind)
    assert json.loads(ResultLayout().to_line(row))["output"] == {"depth": "iVBORw=="}
    assert read_csv(tmp_path / "a.csv")[0]["output_depth"] == "iVBORw=="
    assert pq.read_table(tmp_path / "a.parquet")["output"].to_pylist() == [output]


def test_parquet_groups_of_rows_are_bounded(tmp_path):
    write(tmp_path / "a.parquet", [ResultRow(n, "text", Outcome(n)) for n in range(20_000)])
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert (file.metadata.num_rows, file.metadata.num_row_groups) == (20_000, 3)
    assert file.read()["output"].to_pylist() == [str(n) for n in range(20_000)]


def test_an_output_of_another_type_than_declared_is_an_error(tmp_path):
    with pytest.raises(HugqueueError, match="not of the declared type"):
        write(
            tmp_path / "a.parquet", [ResultRow(0, "a", Outcome("text"))], EMBEDDING, output_type=pa.list_(pa.float32())
        )
    assert list(tmp_path.iterdir()) == []


def test_npy_is_a_matrix_with_a_row_of_nan_for_each_failure(tmp_path):
    vectors = [[0.25 * n, 1.0, -1e-3] for n in range(3)]
    rows = [
        ResultRow("lost", "a", None),
        *(ResultRow(n, "b", Outcome(v)) for n, v in enumerate(vectors)),
        ResultRow("bad", "c", Outcome(failure=NO_MASK)),
    ]
    write(tmp_path / "a.npy", rows, EMBEDDING)
    matrix = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert (matrix.dtype, matrix.shape) == (np.dtype("float32"), (5, 3))
    np.testing.assert_array_equal(matrix[1:4], np.array(vectors, "float32"))
    assert np.isnan(matrix[[0, 4]]).all()
    errors = [json.loads(line) for line in (tmp_path / "a.npy.errors.jsonl").read_text().splitlines()]
    assert [(e["row"], e["id"], e["error_code"]) for e in errors] == [(0, "lost", "not_run"), (4, "bad", "no_mask")]


def test_npy_without_failures_leaves_no_errors_file_of_an_earlier_run(tmp_path):
    write(tmp_path / "a.npy", [ResultRow(0, "a", None)], EMBEDDING)
    assert np.load(tmp_path / "a.npy").shape == (1, 0)
    assert (tmp_path / "a.npy.errors.jsonl").exists()
    write(tmp_path / "a.npy", [ResultRow(0, "a", Outcome([1.0]))], EMBEDDING)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npy"]


def test_npy_equals_what_numpy_saves(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(100, 384)).astype("float32")
    write(tmp_path / "a.npy", [ResultRow(n, "", Outcome(v.tolist())) for n, v in enumerate(vectors)], EMBEDDING)
    np.save(tmp_path / "b.npy", vectors)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


@pytest.mark.parametrize(
    ("precision", "dtype", "missing"),
    [
        ("float16", "float16", np.nan),
        ("float32", "float32", np.nan),
        ("int8", "int8", 0),
        ("uint8", "uint8", 0),
        ("binary", "int8", 0),
        ("ubinary", "uint8", 0),
    ],
)
def test_npy_has_the_numbers_of_the_vectors(tmp_path, precision, dtype, missing):
    vectors = np.array([[1, 2, 3], [0, 5, 127]], dtype)
    rows = [
        ResultRow(0, "a", Outcome(failure=NO_MASK)),
        *(ResultRow(n, "b", Outcome(v)) for n, v in enumerate(vectors)),
        ResultRow(3, "c", None),
    ]
    write(tmp_path / "a.npy", rows, replace(EMBEDDING, params={"precision": precision}))
    matrix = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert matrix.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(matrix, [[missing] * 3, *vectors, [missing] * 3])
    errors = [json.loads(line) for line in (tmp_path / "a.npy.errors.jsonl").read_text().splitlines()]
    assert [(e["row"], e["error_code"]) for e in errors] == [(0, "no_mask"), (3, "not_run")]


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ([[1.0, 2.0], [1.0]], "a vector of 1 numbers, expected 2"),
        ([[[1.0, 2.0]]], "is a list of list"),
        (["text"], "is a str"),
        ([{"a": 1}], "is a dict"),
        ([0.5], "is a float"),
    ],
)
def test_npy_of_anything_but_vectors_of_one_length_is_an_error(tmp_path, outputs, words):
    with pytest.raises(HugqueueError, match=words):
        write(tmp_path / "a.npy", [ResultRow(n, "", Outcome(o)) for n, o in enumerate(outputs)], EMBEDDING)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.npy", "a.jsonl.gz"])
def test_no_rows_make_a_readable_file(tmp_path, name):
    write(tmp_path / name, [], EMBEDDING)
    if name == "a.npy":
        assert np.load(tmp_path / name).shape == (0, 0)
    elif name == "a.parquet":
        assert pq.read_table(tmp_path / name).num_rows == 0
    else:
        data = (tmp_path / name).read_bytes()
        text = gzip.decompress(data) if name.endswith("gz") else data
        assert text.splitlines() == (
            [b"text,targets,id,output,error_code,error_message,truncated"] if "csv" in name else []
        )


def test_equal_results_make_equal_gzip_files(tmp_path):
    write(tmp_path / "a.csv.gz", ROWS)
    write(tmp_path / "b.csv.gz", ROWS)
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()


def test_not_a_number_is_null_in_json():
    line = ResultLayout().to_line(ResultRow(0, "a", Outcome([math.inf, math.nan, 1.0])))
    assert json.loads(line)["output"] == [None, None, 1.0]
