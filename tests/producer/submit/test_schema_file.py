"""The JSON schema of a job: from a file, typed, or refused before a job exists."""

import json
from pathlib import Path

import pytest

from common.errors import UsageError
from common.settings import load_settings
from producer.submit.options import SubmitOptions
from producer.submit.plan import SubmitPlan, make_plan

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def plan(directory: Path, *params: str, task: str = "text-generation") -> SubmitPlan:
    (directory / "texts.txt").write_text("a text\n")
    options = SubmitOptions(task=task, model="org/model", params=params)
    return make_plan([str(directory / "texts.txt")], options, load_settings())


@pytest.mark.parametrize(
    "text", [json.dumps(SCHEMA), json.dumps(SCHEMA, indent=2) + "\n", "\ufeff" + json.dumps(SCHEMA)]
)
def test_a_schema_is_read_from_a_file_into_the_job(tmp_path: Path, text: str) -> None:
    (tmp_path / "schema.json").write_text(text, "utf-8")
    assert plan(tmp_path, f"json_schema=@{tmp_path}/schema.json").spec.params == {"json_schema": SCHEMA}
    assert plan(tmp_path, f"json_schema={json.dumps(SCHEMA)}").spec.params == {"json_schema": SCHEMA}


def test_choices_and_regexes_are_texts(tmp_path: Path) -> None:
    assert plan(tmp_path, "choices=yes, no").spec.params == {"choices": ["yes", "no"]}
    assert plan(tmp_path, 'choices=["1", "a, b"]').spec.params == {"choices": ["1", "a, b"]}
    assert plan(tmp_path, "regex=[0-9]").spec.params == {"regex": "[0-9]"}


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (["json_schema=@none.json"], "none.json"),
        (["json_schema=@bad.json"], "bad.json is not JSON: Expecting"),
        (["json_schema={"], "is not JSON"),
        (["json_schema=NaN"], "NaN is not a JSON number"),
        (["json_schema=[]"], "json_schema must be a JSON schema"),
        (['json_schema={"type": "strin"}'], "json_schema.type: expected one of null, boolean"),
        (['json_schema={"anyOf": [{"minLength": -1}]}'], "json_schema.anyOf[0].minLength"),
        ([f"json_schema={json.dumps({'const': 'x' * 70_000})}"], "65,536 characters"),
        (["json_schema={}", "regex=a"], "only one"),
        (["choices=yes"], "two texts or more"),
        (["regex="], "regex must be a regular expression"),
        (["regex=a", "return_full_text=true"], "return_full_text"),
    ],
)
def test_what_is_no_constraint_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text("{'type': 1}")
    with pytest.raises(UsageError) as caught:
        plan(tmp_path, *params)
    assert words in str(caught.value)


@pytest.mark.parametrize("task", ["image-text-to-text", "any-to-any"])
def test_texts_about_files_have_constraints_too(tmp_path: Path, task: str) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    with pytest.raises(UsageError, match="only one"):
        plan(tmp_path, f"json_schema=@{tmp_path}/schema.json", "regex=a", task=task)


def test_calls_of_tools_need_tools(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tool_calls needs tools"):
        plan(tmp_path, "tool_calls=true")
    tools = json.dumps([{"type": "function", "function": {"name": "weather"}}])
    assert plan(tmp_path, "tool_calls=true", f"tools={tools}").spec.params["tool_calls"] is True
