"""Tables in, tables out: the own columns of records come back unchanged in every format, copied or read in place."""

import csv
import datetime
import decimal
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import duckdb
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from producer.client import Client
from tests.support.cli_processes import Queue
from tests.support.processes import PLUGINS, lines

ADDED = ["output", "error_code", "error_message", "truncated"]
CSV = """\
review,stars,when,price,note,,lang,"odd, name"
"good, very good",5,2026-01-02,007.50,,x,en,1
별로예요,1,,1e3,"two
lines",y,ko,2
"""


def parquet_table(rows: int = 50) -> pa.Table:
    """A table with columns that JSON has no types for."""
    numbers = range(rows)
    day = datetime.date(2026, 1, 1)
    return pa.table(
        {
            "id": [f"row {n}" for n in numbers],
            "body": [f"text {n}" for n in numbers],
            "day": [None if n % 7 == 3 else day + datetime.timedelta(n) for n in numbers],
            "price": pa.array([decimal.Decimal(n) / 8 for n in numbers], pa.decimal128(12, 4)),
            "color": pa.array(["red" if n % 2 else "blue" for n in numbers]).dictionary_encode(),
            "tags": [[{"k": n, "v": None}] * (n % 3) for n in numbers],
            "raw": [bytes([n, 255]) for n in numbers],
            "nothing": pa.nulls(rows),
        }
    )


@pytest.fixture(params=["copied", "in place"])
def folder(request: pytest.FixtureRequest, shared: Path, tmp_path: Path) -> Path:
    """A directory whose files workers read in place, or do not reach."""
    found = shared / tmp_path.name if request.param == "in place" else tmp_path / "in"
    found.mkdir(exist_ok=True)
    return found


def test_a_csv_file_comes_back_whole(queue: Queue, tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_text(CSV)
    for name in ("out.csv", "out.jsonl", "out.parquet"):
        queue.run(
            "submit",
            "--task",
            "test-echo",
            str(tmp_path / "reviews.csv"),
            "--column",
            "review",
            "-o",
            str(tmp_path / name),
        )
    rows = list(csv.DictReader(CSV.splitlines(keepends=True)))
    written = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines(keepends=True)))
    assert list(written[0]) == [*rows[0], "id", *ADDED]
    assert [{name: row[name] for name in rows[0]} for row in written] == rows
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == [*rows[0], "id", *ADDED]
    assert table.select(list(rows[0])).to_pylist() == rows
    found = lines((tmp_path / "out.jsonl").read_text())
    assert found == [row | {"id": n, "output": row["review"].upper()} for n, row in enumerate(rows)]


def test_json_lines_come_back_with_their_keys_and_values(queue: Queue, folder: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"n": n, "text": f"text {n}", "deep": {"a": [n, None], "b": 2**70}, "id": f"i{n}"} for n in range(30)
    ]
    rows[3] = {"text": "text 3", "only here": True}
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '"a text alone"\n')
    done = queue.run("submit", "--task", "test-echo", str(folder / "in.jsonl"), "--wait", "--chunk-size", "8")
    added = [{"output": f"TEXT {n}"} for n in range(30)]
    added[3] = {"id": 3, "output": "TEXT 3"}
    expected = [row | more for row, more in zip(rows, added, strict=True)]
    found = lines(done.stdout)
    assert found == [*expected, {"text": "a text alone", "id": 30, "output": "A TEXT ALONE"}]
    assert [list(row) for row in found[:30]] == [list(row) for row in expected]


@pytest.mark.parametrize("target", ["out.parquet", "parts/"])
def test_parquet_comes_back_with_its_types(
    queue: Queue, folder: Path, shared: Path, tmp_path: Path, target: str
) -> None:
    table = parquet_table()
    pq.write_table(table, folder / "in.parquet", row_group_size=20)
    output = f"{shared / tmp_path.name}-{target}" if target.endswith("/") else str(tmp_path / target)
    options = ("--column", "body", "--chunk-size", "8", "-p", "fail=text 9", "-p", "fail_while=/", "-o", output)
    queue.run("submit", "--task", "test-echo", str(folder / "in.parquet"), *options, status=3)
    found = pq.read_table(output)
    assert found.column_names == [*table.column_names, *ADDED]
    assert found.select(table.column_names).equals(table)
    assert found["output"].to_pylist() == [None if n == 9 else f"TEXT {n}" for n in range(50)]
    files, days = f"{output}*.parquet" if output.endswith("/") else output, table["day"].to_pylist()
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert (loaded["day"][:], loaded["color"][:3]) == (days, ["blue", "red", "blue"])
    assert polars.scan_parquet(files).collect()["day"].to_list() == days
    assert [row[0] for row in duckdb.sql(f"select day from '{files}'").fetchall()] == days


def test_the_columns_of_a_retried_part_are_unchanged(queue: Queue, folder: Path, shared: Path, tmp_path: Path) -> None:
    table, bad = parquet_table(), tmp_path / "bad"
    bad.touch()
    pq.write_table(table, folder / "in.parquet")
    output = shared / f"retried-{tmp_path.name}"
    options = (
        "--column",
        "body",
        "--chunk-size",
        "20",
        "-p",
        "fail=text 9",
        "-p",
        f"fail_while={bad}",
        "-o",
        f"{output}/",
    )
    queue.run("submit", "--task", "test-echo", str(folder / "in.parquet"), *options, status=3)
    bad.unlink()
    queue.run("retry", "@last", "--wait")
    found = pq.read_table(output)
    assert found.select(table.column_names).equals(table)
    assert found["output"].to_pylist() == [f"TEXT {n}" for n in range(50)]


@pytest.mark.parametrize(
    ("keep", "kept"), [("none", []), ("price, day", ["day", "price"]), ("body", ["body"]), ("all", None)]
)
def test_keep_chooses_columns(queue: Queue, folder: Path, keep: str, kept: list[str] | None) -> None:
    table = parquet_table(5)
    pq.write_table(table, folder / "in.parquet")
    done = queue.run(
        "submit", "--task", "test-echo", str(folder / "in.parquet"), "--column", "body", "--keep", keep, "--wait"
    )
    names = table.column_names if kept is None else kept
    assert [list(row) for row in lines(done.stdout)] == [[*names, *([] if "id" in names else ["id"]), "output"]] * 5
    assert [row["id"] for row in lines(done.stdout)] == table["id"].to_pylist()


def test_an_output_column_of_another_name(queue: Queue, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("text,output\na,old\n")
    refused = queue.run("submit", "--task", "test-echo", str(tmp_path / "in.csv"), status=2)
    assert "a column 'output' already" in refused.stderr and "--output-column" in refused.stderr
    options = ("--output-column", "upper", "-o", str(tmp_path / "out.csv"))
    queue.run("submit", "--task", "test-echo", str(tmp_path / "in.csv"), *options)
    assert (tmp_path / "out.csv").read_text() == (
        "text,output,id,upper,error_code,error_message,truncated\na,old,0,A,,,false\n"
    )


def test_a_late_line_with_an_added_name_fails_alone(queue: Queue, tmp_path: Path) -> None:
    rows = [{"text": f"t{n}"} for n in range(1100)]
    rows[1050] |= {"error_code": "mine"}
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = queue.run("submit", "--task", "test-echo", str(tmp_path / "in.jsonl"), "--wait", status=3)
    found = lines(done.stdout)
    assert [row["id"] for row in found if "output" not in row] == [1050]
    assert found[1050]["error_code"] == "column_clash" and "line 1051" in found[1050]["error_message"]


def test_json_values_that_the_first_lines_did_not_announce(queue: Queue, shared: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": f"t{n}", "n": n, "m": n} for n in range(1500)]
    rows[1200] |= {"n": 0.5, "m": "word", "new": [1]}
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for output in (tmp_path / "out.parquet", tmp_path / "out.csv"):
        queue.run("submit", "--task", "test-echo", str(tmp_path / "in.jsonl"), "-o", str(output))
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["n"].to_pylist() == [row["n"] for row in rows]
    assert table["m"].to_pylist() == [str(row["m"]) for row in rows]
    assert table["new"].to_pylist()[1200] == [1]
    assert pd.read_csv(tmp_path / "out.csv")["m"].tolist() == [str(row["m"]) for row in rows]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.parquet": [1, 2], "b.parquet": [[1], [2]]}, "'x' has the type int64 in .*a.parquet, and list<"),
        ({"a.csv": "text,x,x\na,1,2\n"}, "more than one column 'x'"),
    ],
)
def test_columns_that_cannot_be_one_table_are_refused(
    queue: Queue, tmp_path: Path, files: dict[str, Any], words: str
) -> None:
    for name, values in files.items():
        if isinstance(values, str):
            (tmp_path / name).write_text(values)
        else:
            pq.write_table(pa.table({"text": ["a", "b"], "x": values}), tmp_path / name)
    paths = [str(tmp_path / name) for name in files]
    refused = queue.run("submit", "--task", "test-echo", *paths, status=2)
    assert re.search(words, refused.stderr)
    queue.run("submit", "--task", "test-echo", *paths, "--keep", "text")


def test_a_record_whose_own_columns_are_too_large_fails_alone(queue: Queue, tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b", "c"], "x": ["small", "large" * 4_000_000, None]})
    pq.write_table(table, tmp_path / "in.parquet")
    done = queue.run("submit", "--task", "test-echo", str(tmp_path / "in.parquet"), "--wait", status=3)
    assert [row.get("error_code") for row in lines(done.stdout)] == [None, "too_large", None]


@pytest.fixture
def client(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.syspath_prepend(str(PLUGINS))
    with Client(queue.environ["REDIS_URL"]) as found:
        yield found


def test_the_client_returns_tables_with_the_types_of_what_it_got(client: Client) -> None:
    table = parquet_table()
    job = client.submit(task="test-echo", records=table, column="body")
    job.wait(check=True)
    assert job.to_arrow().select(table.column_names).equals(table)
    assert job.to_pandas()["output"].tolist() == [f"TEXT {n}" for n in range(50)]
    found = job.to_dataset()
    assert isinstance(found, datasets.Dataset) and found["price"][9] == decimal.Decimal("1.125")
    assert [row.columns["day"] for row in job.results()][:2] == ["2026-01-01", "2026-01-02"]


def test_frames_keep_their_types(client: Client) -> None:
    when = pd.to_datetime(["2026-01-02", None])
    frame = pd.DataFrame({"text": ["a", "b"], "when": when, "n": [1, 2], "odd": [{1}, object]})
    for columns in (["text", "when", "n"], ["text", "when", "n", "odd"]):
        job = client.submit(task="test-echo", records=frame[columns])
        job.wait(check=True)
        found = job.to_pandas()
        assert found["n"].tolist() == [1, 2] and list(found)[: len(columns)] == columns
        if "odd" not in columns:
            pd.testing.assert_series_equal(found["when"], frame["when"], check_dtype=False)
