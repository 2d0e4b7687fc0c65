"""Templates and chats of a submit: what is refused before any work, and what the job says."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from common.errors import UsageError
from common.tasks import TASKS
from producer.submit.dry_run import make_dry_run_report
from producer.submit.options import SubmitOptions
from producer.submit.plan import SubmitPlan, make_plan
from producer.submit.python_records import python_builder, records_from_python, split_records_arg

CHAT_MODEL = TASKS["text-generation"].model
COLUMNS = {"title": ["Good", None], "stars": [5, 1]}


@pytest.fixture(autouse=True)
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGQUEUE_HOME", str(tmp_path / "home"))


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    path = tmp_path / "reviews.csv"
    path.write_text("title,body\nGood,It works\nBad,It\n")
    return path


def plan(path: Path, task: str = "embedding", **options: Any) -> SubmitPlan:
    return make_plan([str(path)], SubmitOptions(task=task, **options))


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        plan(path, **options)
    return str(caught.value)


def test_a_template_is_part_of_the_job(reviews: Path) -> None:
    found = plan(reviews, template="{title}: {body}")
    assert [record.input for record in found.records()] == ["Good: It works", "Bad: It"]
    assert found.spec.template == "{title}: {body}"
    assert plan(reviews, column="body").spec.template is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"template": "{titel}"}, "no column 'titel' (--template); it has: title, body."),
        ({"template": "{title"}, "--template: the { at line 1, character 1 is never closed. Write {{"),
        ({"template": "title"}, "--template: it names no column"),
        ({"template": 5}, "--template: expected text, found 5"),
        ({"template": "{title}", "column": "body"}, "--template and --column both name the input: use only one."),
        ({"template": "{title}", "task": "question-answering"}, "question-answering takes question + context"),
        ({"template": "{title}", "task": "image-classification"}, "image-classification takes image"),
        ({"system": "a", "column": "body"}, "--system is for text-generation, any-to-any, image-text-to-text"),
        ({"chat": False, "column": "body", "task": "fill-mask"}, "image-text-to-text; the task is fill-mask"),
    ],
)
def test_what_cannot_be_done_is_refused(reviews: Path, options: dict[str, Any], words: str) -> None:
    assert words in refused(reviews, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"chat": False, "system": "a"}, "--system is the first message of a chat"),
        ({"chat": False, "params": {"system": "a"}}, "-p: system is the first message of a chat"),
        ({"system": "a", "params": ["system=b"]}, "--system and the parameter system: use only one"),
        ({"chat": True, "params": ["chat=true"]}, "--chat and the parameter chat: use only one"),
        ({"system": " "}, "system must be a text of up to 65,536 characters"),
        ({"system": "x" * 65_537}, "system must be a text of up to 65,536 characters"),
        ({"params": {"prefix": "a"}}, "--no-chat"),
        ({"chat": "yes"}, "chat must be true or false"),
    ],
)
def test_options_for_chats_are_checked(reviews: Path, options: dict[str, Any], words: str) -> None:
    assert words in refused(reviews, task="text-generation", column="body", **options)


@pytest.mark.parametrize(
    ("options", "params"),
    [
        ({}, {"chat": True}),
        ({"model": CHAT_MODEL}, {"chat": True}),
        ({"chat": False}, {"chat": False}),
        ({"params": ["chat=false"]}, {"chat": False}),
        ({"params": ["chat=false", "prefix=a"]}, {"chat": False, "prefix": "a"}),
        ({"system": "a"}, {"chat": True, "system": "a"}),
        ({"model": "org/model"}, {}),
        ({"model": "org/model", "chat": True}, {"chat": True}),
        ({"model": "org/model", "system": "a"}, {"chat": True, "system": "a"}),
        ({"model": "org/model", "params": {"system": "a"}}, {"chat": True, "system": "a"}),
        ({"model": "org/model", "chat": False}, {"chat": False}),
    ],
)
def test_texts_for_the_default_model_are_asked_as_messages(
    reviews: Path, options: dict[str, Any], params: dict[str, Any]
) -> None:
    assert plan(reviews, task="text-generation", column="body", **options).spec.params == params


def test_requests_of_a_batch_file_say_themselves_what_they_ask(tmp_path: Path) -> None:
    path = tmp_path / "batch.jsonl"
    body = '{"model": "m", "messages": [{"role": "user", "content": "a"}]}'
    path.write_text(f'{{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {body}}}\n')
    openai = {"task": "text-generation", "format": "openai"}
    assert plan(path, **openai, model=CHAT_MODEL).spec.params == {}
    assert "--system cannot be combined with --format openai" in refused(path, **openai, system="a")
    assert "--chat cannot be combined with --format openai" in refused(path, **openai, params=["chat=true"])
    assert "--template cannot be combined with --format openai" in refused(path, **openai, template="{a}")


def test_a_dry_run_shows_the_first_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    path = tmp_path / "reviews.jsonl"
    path.write_text('{"b": "x"}\n{"title": "Good\\u001b"}\n' + '{"title": "Bad"}\n' * 5 + '{"b": 1}\n')
    report = make_dry_run_report(plan(path, template="Title:\n{title}"), lambda _: None)
    assert report.prompts == ("Title:\nGood\x1b", "Title:\nBad", "Title:\nBad")
    assert report.bad_by_code == {"missing_field": 2}
    assert (
        "prompt   Title:\n         Good\N{REPLACEMENT CHARACTER}\nprompt   Title:\n         Bad\n" in report.as_text()
    )
    path.write_text(f'{{"title": "{"x" * 5000}"}}\n')
    [prompt] = make_dry_run_report(plan(path, template="{title}"), lambda _: None).prompts
    assert prompt == "x" * 999 + "…"


def test_a_dry_run_says_whether_texts_are_asked(reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    chosen = plan(reviews, task="text-generation", column="body", system="You\nlike cats.")
    report = make_dry_run_report(chosen, lambda _: None)
    assert "params   chat=true, system=You like cats.\n" in report.as_text()
    assert report.as_dict()["params"] == {"chat": True, "system": "You\nlike cats."}
    plain = make_dry_run_report(plan(reviews, column="body"), lambda _: None)
    assert "params" not in plain.as_text()


TABLES = [pd.DataFrame, pa.table, dict, lambda columns: pa.table(columns).to_pylist()]


def made(values: Any, template: str) -> list[Any]:
    found = plan_of_values(template)
    _, records = split_records_arg(values)
    made = records_from_python(records, python_builder(found.task, template=found.template), 10_000)
    return [record.input for record in made]


def plan_of_values(template: str) -> SubmitPlan:
    return make_plan([], SubmitOptions(task="embedding", template=template))


@pytest.mark.parametrize("table", TABLES)
def test_python_objects_take_a_template(table: Any) -> None:
    assert made(table(COLUMNS), "{title} ({stars})") == ["Good (5)", " (1)"]
    with pytest.raises(UsageError, match=r"'body' \(--template\).*stars"):
        made(table(COLUMNS), "{body}")


def test_texts_of_a_program_take_a_template_and_are_read_one_by_one() -> None:
    taken: list[int] = []

    def texts() -> Iterator[str]:
        for number in range(5):
            taken.append(number)
            yield f"text {number}"

    found = plan_of_values("query: {text}")
    records = records_from_python(texts(), python_builder(found.task, template=found.template), 10_000)
    assert next(records).input == "query: text 0"
    assert taken == [0]
