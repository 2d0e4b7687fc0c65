"""What a table on a terminal shows of each kind of output."""

import pytest

from common.records import Failure, Outcome
from producer.outputs import ResultRow, preview


def shown(output) -> str:
    return preview(ResultRow(0, "in", Outcome(output)))[2]


def word(text: str, score: float, mask: int = 0) -> dict:
    return {"score": score, "token": 1, "token_str": text, "sequence": f"the {text}", "mask": mask}


WORDS = [word("paris", 0.91), word("lyon", 0.0312), word("nice", 0.01), word("metz", 0.001)]


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (WORDS, "paris 0.910 · lyon 0.031 · nice 0.010 · …"),
        ([*WORDS[:2], word("nice", 0.5, mask=1)], "paris 0.910 · lyon 0.031 | nice 0.500"),
        ({"label": "POSITIVE", "score": 0.9998}, "POSITIVE 1.000"),
        ([{"label": "A", "score": 0.7}, {"label": "B", "score": 0.3}], "A 0.700 · B 0.300"),
        ([{"entity_group": "LOC", "word": "Seoul", "score": 0.99, "start": 0}], "Seoul LOC 0.990"),
        ([{"entity": "B-PER", "word": "Ann", "score": 0.5}], "Ann B-PER 0.500"),
        ({"sequence": "x", "labels": ["a", "b"], "scores": [0.75, 0.25]}, "a 0.750 · b 0.250"),
        ({"score": 0.5, "start": 0, "end": 3, "answer": "Ann"}, "Ann 0.500"),
        ("Hallo\nWelt", "Hallo Welt"),
        ({"text": "short", "prompt_tokens": 2, "completion_tokens": 1, "finish_reason": "stop"}, "short"),
        ([{"role": "user", "content": "q"}, {"role": "assistant", "content": "안녕"}], "안녕"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "a"),
        (
            [{"label": "cat", "score": None, "mask": b"png"}, {"label": "dog", "score": 0.5, "mask": b"png"}],
            "cat · dog 0.500",
        ),
        ({"depth": b"png"}, "a depth map"),
        ([0.0123, -0.0234] + [0.5] * 382, "[0.01, -0.02, … 384 numbers]"),
        ([0.5, 1.0], "[0.5, 1.0]"),
        ([12, -128] + [5] * 382, "[12, -128, … 384 numbers]"),
        ([{"start": 0, "end": 9, "vector": [0.25] * 8}] * 2, " · ".join(["0 to 9: [0.25, 0.25, … 8 numbers]"] * 2)),
        ([[[0.1] * 768] * 12], "1 × 12 × 768 numbers"),
        ("plain", "plain"),
        ([], "[]"),
        (None, "null"),
        ({"anything": {"else": 1}}, '{"anything": {"else": 1}}'),
        (["a", "b"], "a, b"),
    ],
)
def test_an_output_is_shown_by_its_shape(output, text):
    assert shown(output) == text


def test_a_failure_is_shown_with_its_code():
    assert preview(ResultRow(3, "in", Outcome(failure=Failure("no_mask", "no mask here")))) == (
        "3",
        "in",
        "no_mask: no mask here",
    )
    assert preview(ResultRow("x", None, None))[2].startswith("not_run: ")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"question": "who?", "context": "Ann."}, "who? · Ann."),
        ({"messages": [{"role": "user", "content": "hello"}]}, "hello"),
        ({"table": {"a": [1]}, "query": "q"}, "1 · q"),
        ("a\tb\r\n\x1b[31mred\x9b \ud800", "a b [31mred"),
        ("가" * 200, "가" * 119 + "…"),
    ],
)
def test_an_input_is_shown_in_one_line_without_control_characters(value, text):
    shown_input = preview(ResultRow(0, value, Outcome("out")))[1]
    assert "\x1b" not in shown_input
    if not isinstance(value, dict) or "table" not in value:
        assert shown_input == text
