"""Parameters of embeddings at submit: ranges are read from their file, and contradictions are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import UsageError
from producer.submit.options import SubmitOptions
from producer.submit.plan import SubmitPlan, make_plan

ROWS = [[-0.5, 0.125, 0.0], [0.5, 0.25, 0.0]]


def plan(tmp_path: Path, *params: str, **options: Any) -> SubmitPlan:
    source = tmp_path / "in.txt"
    source.write_text("one\ntwo\n")
    return make_plan([str(source)], SubmitOptions(task="embedding", **{"params": params, **options}))


def write(path: Path, value: Any) -> str:
    """Write a file of ranges by its extension; return the parameter that names it."""
    if isinstance(value, bytes):
        path.write_bytes(value)
    elif path.suffix == ".npy":
        np.save(path, value)
    else:
        path.write_text(json.dumps(value))
    return f"ranges={path}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("r.json", ROWS),
        ("r.json", {"min": ROWS[0], "max": ROWS[1]}),
        ("r.json", {"source": "chunk 1 (256 records)", "min": ROWS[0], "max": ROWS[1]}),
        ("r.npy", np.array(ROWS)),
        ("r.npy", np.array(ROWS, "float32")),
    ],
)
def test_ranges_are_read_from_a_file(tmp_path: Path, name: str, value: Any) -> None:
    path = tmp_path / name
    found = plan(tmp_path, "precision=uint8", write(path, value)).spec
    assert found.params["ranges"] == {"source": name, "min": ROWS[0], "max": ROWS[1]}
    assert found.shown_params == {"precision": "uint8", "ranges": name}


@pytest.mark.parametrize("value", [ROWS, {"min": ROWS[0], "max": ROWS[1]}, np.array(ROWS)])
def test_ranges_may_be_python_objects(tmp_path: Path, value: Any) -> None:
    found = plan(tmp_path, params={"precision": "int8", "ranges": value}).spec
    assert found.params["ranges"] == {"source": "the parameters", "min": ROWS[0], "max": ROWS[1]}


def test_a_path_may_be_a_python_object_too(tmp_path: Path) -> None:
    write(tmp_path / "r.npy", np.array(ROWS))
    found = plan(tmp_path, params={"precision": "int8", "ranges": tmp_path / "r.npy"}).spec
    assert found.ranges and found.ranges.min == ROWS[0]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("r.json", b"[[1, 2", r"r\.json is not JSON"),
        ("r.npy", b"[[1, 2], [3, 4]]", r"r\.npy is not a \.npy file"),
        ("r.npy", np.array([{"a": 1}], object), r"r\.npy is not a \.npy file"),
        ("r.npy", b"\x93NUMPY\x01\x00", r"r\.npy is not a \.npy file"),
        ("r.json", [[1, 2], [3]], "found rows of different lengths"),
        ("r.json", [[1, 2]], r"two rows of numbers.*found an array of shape \(1, 2\)"),
        ("r.json", [1, 2], r"found an array of shape \(2,\)"),
        ("r.json", [[], []], r"found an array of shape \(2, 0\)"),
        ("r.npy", np.zeros((3, 4)), r"found an array of shape \(3, 4\)"),
        ("r.json", {"minimum": 1}, "found something else"),
        ("r.json", "text", "found something else"),
        ("r.json", [["a"], ["b"]], "found something else"),
        ("r.json", [[0, 1], [1, 0]], r"dimension 1: expected finite numbers, the minimum first, found 1\.0 and 0\.0"),
        ("r.npy", np.array([[0.0, np.nan], [1, 1]]), "dimension 1: expected finite numbers"),
        ("r.npy", np.array([[0.0], [1e300]]), "dimension 0: expected finite numbers"),
    ],
)
def test_a_file_with_something_else_is_refused(tmp_path: Path, name: str, value: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plan(tmp_path, "precision=int8", write(tmp_path / name, value))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ranges=gone\.npy cannot be read: No such file"):
        plan(tmp_path, "precision=int8", "ranges=gone.npy")


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (["precision=int4"], "precision must be one of float32, float16, int8, uint8, binary, ubinary, found 'int4'"),
        (["ranges=FILE"], "ranges is for precision=int8 and precision=uint8; the precision is float32"),
        (["precision=binary", "ranges=FILE"], "the precision is binary"),
        (["precision=binary", "truncate_dim=100"], "packs 8 dimensions into a byte.*100.*such as 96"),
        (["precision=ubinary", "truncate_dim=4"], "vectors of 4 are not a multiple of 8"),
        (["split_tokens=0"], "split_tokens must be a whole number of at least 1, found 0"),
        (["split_tokens=8", "split_overlap=-1"], "split_overlap must be a whole number of at least 0"),
        (["split_tokens=8", "split_overlap=5"], "split_overlap must be at most half of split_tokens, found 5 and 8"),
        (["split_overlap=8"], "split_overlap needs split_tokens"),
        (["split_token=8"], "Did you mean split_tokens"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, params: list[str], words: str) -> None:
    file = write(tmp_path / "r.json", ROWS)
    with pytest.raises(UsageError, match=words):
        plan(tmp_path, *(file if param == "ranges=FILE" else param for param in params))


def test_several_vectors_do_not_fit_into_npy(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"one vector per record.* an output of this task is list<struct<start: int64"):
        plan(tmp_path, "split_tokens=8", output=tmp_path / "out.npy")
    assert plan(tmp_path, "split_tokens=8", output=tmp_path / "out.parquet").output


@pytest.mark.parametrize("param", ["precision=int8", "split_tokens=8"])
def test_responses_to_a_batch_file_are_floats(tmp_path: Path, param: str) -> None:
    request = {"custom_id": "1", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": "one"}}
    source = tmp_path / "requests.jsonl"
    source.write_text(json.dumps(request))
    with pytest.raises(UsageError, match="cannot be combined with --format openai"):
        make_plan([str(source)], SubmitOptions(format="openai", params=[param]))
