"""JSON of whatever a pipeline or a program gives."""

import json
from typing import Any

import numpy as np
import pytest

from common.json_codec import numbers_to_json, to_json, to_jsonable
from common.own_columns import Keep
from common.records import Failure, Outcome
from common.results import ResultLayout, ResultRow


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [1, 2**70, True, None, "서울"]}, '{"a": [1, 18446744073709551616, true, null, "서울"]}'),
        ({"a": float("nan"), "b": [float("inf")], "c": 0.5}, '{"a": null, "b": [null], "c": 0.5}'),
        ({7: (1, 2), "b": {3}}, '{"7": [1, 2], "b": [3]}'),
        ({"a": np.float32(0.5), "b": np.array([1, 2]), "c": np.float64(1.5)}, '{"a": 0.5, "b": [1, 2], "c": 1.5}'),
        ({"a": b"\xff"}, '{"a": "/w=="}'),
        (["서", "\ud800"], '["\\uc11c", "\\ud800"]'),
    ],
)
def test_values_that_json_lacks_have_a_form(value: Any, text: str) -> None:
    assert to_json(value) == text.replace("18446744073709551616", str(2**70))


def test_what_has_no_form_is_refused() -> None:
    with pytest.raises(TypeError, match="a object has no JSON form"):
        to_json({"a": object()})


@pytest.mark.parametrize(
    "value",
    [
        [0.1, -0.0, 1e-5, 1e22, 5e-324, float("nan"), float("-inf")],
        np.array([0.1, np.nan, 3e38], np.float32),
        np.array([[1, -2], [3, 4]], np.int8),
        np.array([60000, np.inf], np.float16),
        np.array([], np.float32),
    ],
)
def test_numbers_encoded_apart_are_the_same_numbers(value: Any) -> None:
    text = numbers_to_json(value)
    assert text is not None
    assert json.loads(text) == to_jsonable(value)
    assert str(json.loads(text)) == str(to_jsonable(value))


@pytest.mark.parametrize("value", [None, "text", 1.5, [], [1, 2.0], [0.5, None], np.float32(1), np.array(["a"])])
def test_other_values_are_left_to_json(value: Any) -> None:
    assert numbers_to_json(value) is None


def test_a_line_with_a_vector_has_its_keys_in_their_order() -> None:
    layout = ResultLayout(Keep(None, "vector"))
    vector = np.array([0.5, np.nan], np.float32)
    row = ResultRow("a", {}, Outcome(vector, truncated=True), {"text": '"vector": [0.5]', "vector": 1, "é": [1.5, 2.5]})
    assert list(json.loads(layout.to_line(row)).items()) == list(json.loads(to_json(layout.as_dict(row))).items())
    failed = ResultRow("a", "x", Outcome(failure=Failure("no", "why")))
    assert json.loads(layout.to_line(failed))["error_code"] == "no"
