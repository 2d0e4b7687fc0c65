"""JSON of whatever a pipeline or a program gives."""

from typing import Any

import numpy as np
import pytest

from common.json_codec import to_json


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
