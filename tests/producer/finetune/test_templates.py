"""Examples whose text a template makes, and examples of every input that `submit` takes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UsageError
from common.training.options import TrainingOptions
from producer.finetune.options import KEYWORDS, FinetuneOptions
from producer.finetune.plan import make_finetune_plan
from producer.finetune.training_data import ExampleSet, ExampleSource
from producer.submit.python_records import split_records_arg

ROWS = [
    {"title": "Good", "body": "It works", "label": "yes", "text_pair": "p"},
    {"title": "Bad", "body": "It broke", "label": "no", "text_pair": "q"},
]
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}
TEMPLATE = "{title}: {body}"
EXAMPLES = [
    {"text": "Good: It works", "label": "yes", "text_pair": "p"},
    {"text": "Bad: It broke", "label": "no", "text_pair": "q"},
]


@pytest.fixture(autouse=True)
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGQUEUE_HOME", str(tmp_path / "home"))


def examples(*paths: Path | str, task: str = "text-classification", **options: Any) -> ExampleSet:
    options = FinetuneOptions.of(task=task, model="org/model", **options)
    return make_finetune_plan([str(path) for path in paths], options).examples


def examples_of(values: Any, task: str = "text-classification", **options: Any) -> ExampleSet:
    source = ExampleSource(*split_records_arg(values))
    return make_finetune_plan(source, FinetuneOptions.of(task=task, model="org/model", **options)).examples


def refused(call: Callable[..., ExampleSet], *arguments: Any, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        call(*arguments, **options)
    return str(caught.value)


def written(folder: Path, kind: str) -> Path:
    path = folder / f"reviews.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif kind in ("csv", "tsv"):
        pd.DataFrame(ROWS).to_csv(path, index=False, sep="," if kind == "csv" else "\t")
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_columns_of_every_format_become_the_text_of_an_example(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, kind)
    assert examples(path, template=TEMPLATE).train == EXAMPLES
    assert examples(path, path, template=TEMPLATE, evaluation=str(path)).evaluation == EXAMPLES
    by_title = examples(path, template="{body}", label_column="title").train
    assert [(row["text"], row["label"]) for row in by_title] == [("It works", "Good"), ("It broke", "Bad")]
    assert examples(path, template=TEMPLATE, task="fill-mask").train == [{"text": row["text"]} for row in EXAMPLES]


TABLES: list[Callable[[dict[str, list[str]]], Any]] = [
    pd.DataFrame,
    pa.table,
    dict,
    lambda columns: pa.table(columns).to_pylist(),
    lambda columns: iter(pa.table(columns).to_pylist()),
]


@pytest.mark.parametrize("table", TABLES)
def test_python_objects_are_examples(table: Callable[[dict[str, list[str]]], Any]) -> None:
    assert examples_of(table(COLUMNS), template=TEMPLATE).train == EXAMPLES
    assert [row["text"] for row in examples_of(table(COLUMNS), text_column="body").train] == ["It works", "It broke"]
    assert "'subject'" in refused(examples_of, table(COLUMNS), template="{subject}")


def test_a_program_evaluates_with_its_own_objects() -> None:
    train, held_out = (ExampleSource(*split_records_arg(pd.DataFrame(rows))) for rows in (ROWS, ROWS[:1]))
    options = FinetuneOptions.of(model="org/model", text_column="body", early_stopping=2)
    assert len(make_finetune_plan(train, options, held_out).examples.evaluation) == 1
    unknown = ExampleSource(*split_records_arg([{"body": "So so", "label": "maybe"}]))
    with pytest.raises(UsageError, match=r"records.*'maybe'"):
        make_finetune_plan(ExampleSource(*split_records_arg(ROWS)), options, unknown)


def test_python_texts_are_enough_for_a_language_model() -> None:
    assert examples_of(["one", "two"], task="fill-mask").train == [{"text": "one"}, {"text": "two"}]
    assert examples_of(["one"], task="text-generation", template="Q: {text}").train == [{"text": "Q: one"}]


def test_a_template_is_a_prompt_where_a_column_of_completions_is_chosen(tmp_path: Path) -> None:
    path = tmp_path / "questions.csv"
    path.write_text("question,answer\nWhat?,This.\n")
    task = {"task": "text-generation"}
    assert examples(path, template="Q: {question}", label_column="answer", **task).train == [
        {"prompt": "Q: What?", "completion": "This."}
    ]
    whole = examples(path, template="Q: {question}\nA: {answer}", **task).train
    assert whole == [{"text": "Q: What?\nA: This."}]


def test_plain_text_has_one_name(tmp_path: Path) -> None:
    path = tmp_path / "domain.txt"
    path.write_text("one\n")
    assert examples(path, template="Text: {text}", task="fill-mask").train == [{"text": "Text: one"}]
    assert "plain text has: text" in refused(examples, path, template="{body}", task="fill-mask")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"template": "{subject}"}, "no column 'subject' (--template); it has: title, body, label, text_pair."),
        ({"template": "{title"}, "--template: the { at line 1, character 1 is never closed. Write {{"),
        ({"template": "{title}", "text_column": "body"}, "--template and --text-column both name the text"),
        ({"template": "{title}", "label_column": "text"}, "--label-column text: with --template"),
        ({"template": "{title}", "label_column": "stars"}, "needs text + stars; the columns are: title, body"),
        ({"template": "{title}", "task": "token-classification"}, "token-classification learns words"),
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    assert words in refused(examples, written(tmp_path, "csv"), **options)


def test_a_template_on_the_wire_is_checked() -> None:
    training = TrainingOptions(template="{a}")
    assert TrainingOptions.decode(json.loads(json.dumps(training.encode()))) == training
    for wrong in ("{a", 5, "x"):
        with pytest.raises(UsageError, match="--template"):
            TrainingOptions.decode({**training.encode(), "template": wrong})


def test_one_dataset_of_the_hub_is_left_to_the_worker(tmp_path: Path) -> None:
    options = FinetuneOptions.of(model="org/model", template="{a}")
    for name in ("hf:imdb", "hf:org/name:train[:10%]", "hf:org/name:config:train"):
        found = make_finetune_plan([name], options)
        assert found.spec.training and found.spec.training["train_source"] == name
        assert found.examples.train == []


def test_the_keywords_of_the_client_are_options() -> None:
    assert {"task", "model", "template", "epochs", "params", "eval_split"} <= KEYWORDS
    assert not {"training", "arguments", "train_source", "eval_source"} & KEYWORDS
