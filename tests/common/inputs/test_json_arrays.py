"""`.json` files: arrays give their elements one by one, and what is broken fails alone, at its line."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UsageError
from common.inputs import find_inputs
from common.inputs import json_array as module
from common.inputs.json_array import array_records
from common.inputs.record_builder import RecordBuilder
from common.inputs.sources import Source
from common.records import Record
from common.tasks import TASKS

FILL = TASKS["fill-mask"]


def read(path: Path, text: str | bytes, limit: int = 1000, task: str = "fill-mask") -> list[Record]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    found = find_inputs([str(path)], TASKS[task])
    found.check(limit)
    return list(found.records(limit))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(['"', "\\", '\\"', "]", "{,}", "한"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(values=st.lists(VALUES, max_size=6), indent=st.sampled_from([None, 1]), block=st.integers(1, 9))
def test_the_elements_of_an_array_are_what_json_reads(values: list[Any], indent: int | None, block: int) -> None:
    data = "\n " + json.dumps(values, indent=indent, ensure_ascii=False).replace("\ud800", "") + "\n"
    builder = RecordBuilder(Source("a.json", "json"), FILL, None, None, multiple_inputs=False)
    stream = io.BufferedReader(io.BytesIO(data.encode(errors="replace")))
    previous, module._BLOCK = module._BLOCK, block
    try:
        stream.peek(1)
        records = list(array_records(builder, stream, 10**6))
    finally:
        module._BLOCK = previous
    made = [builder.record(number, 1, json.loads(json.dumps(value))) for number, value in enumerate(values)]
    assert [(record.id, record.input) for record in records] == [(record.id, record.input) for record in made]


def test_an_array_gives_records_with_their_ids(tmp_path: Path) -> None:
    text = '\ufeff[\n  {"id": "x", "text": "a [MASK]"},\n  "b [MASK]"\n]\n'
    assert [(r.id, r.input, r.failure) for r in read(tmp_path / "a.json", text)] == [
        ("x", "a [MASK]", None),
        (1, "b [MASK]", None),
    ]


def test_json_lines_are_read_under_that_name_too(tmp_path: Path) -> None:
    records = read(tmp_path / "a.json", '{"text": "a"}\n\n{"text": "b"}\n')
    assert [(r.id, r.input) for r in records] == [(0, "a"), (2, "b")]


@pytest.mark.parametrize("form", ["{0}\n{0}\n", "[{0},\n{0}]\n"])
def test_chats_are_read_from_lines_and_from_an_array(tmp_path: Path, form: str) -> None:
    chat = [{"role": "user", "content": "a ] b"}]
    records = read(tmp_path / "a.json", form.format(json.dumps(chat)), task="text-generation")
    assert [(r.input, r.failure) for r in records] == [({"messages": chat}, None)] * 2


def test_a_broken_element_fails_alone_at_its_line(tmp_path: Path) -> None:
    records = read(tmp_path / "a.json", '["a",\n\n {"text": nope},\n "\\q", "b", ' + f'"{"x" * 2000}", "c"]')
    codes = [record.failure and record.failure.code for record in records]
    assert codes == [None, "bad_json", "bad_json", None, "too_large", None]
    assert records[1].failure and "a.json line 3" in records[1].failure.message


@pytest.mark.parametrize("text", ['["a", "b"', '["a", {"text": "b"}}, "c"]', '["a"] ["b"]', '["a",,"c"]', '["a",]'])
def test_a_broken_array_loses_nothing_in_silence(tmp_path: Path, text: str) -> None:
    records = read(tmp_path / "a.json", text)
    assert records[0].failure is None
    assert any(record.failure and record.failure.code == "bad_json" for record in records)


def test_bytes_that_are_not_utf8_fail_their_element(tmp_path: Path) -> None:
    records = read(tmp_path / "a.json", b'["a", "\xff", "c"]')
    assert [record.failure and record.failure.code for record in records] == [None, "bad_encoding", None]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "contains no records"),
        (" ", "contains no records"),
        ('{\n "data": [\n "a"]\n}', "a single JSON object over several"),
    ],
)
def test_a_file_without_records_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read(tmp_path / "a.json", text)
