"""Chats and preferences in files: what is read, and what is refused before anything is submitted."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UsageError
from producer.finetune.options import FinetuneOptions
from producer.finetune.plan import FinetunePlan, make_finetune_plan

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}
WORSE = {"role": "assistant", "content": "What?"}
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.fixture(autouse=True)
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGQUEUE_HOME", str(tmp_path / "home"))


def plan_of(path: Path, **options: Any) -> FinetunePlan:
    return make_finetune_plan([str(path)], FinetuneOptions.of(task="text-generation", model="org/model", **options))


def plan(tmp_path: Path, rows: Sequence[Any], **options: Any) -> FinetunePlan:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return plan_of(path, **options)


def refused(tmp_path: Path, *rows: Any, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        plan(tmp_path, rows, **options)
    return str(caught.value)


def test_chats_are_read_from_every_format(tmp_path: Path) -> None:
    rows = [{"messages": [USER, ANSWER]}, {"messages": [USER, CALL, TOOL | {"role": "tool", "content": "1"}, ANSWER]}]
    found = plan(tmp_path, [rows[0], {**rows[1], "tools": [TOOL], "id": 7}]).examples
    assert found.train == [rows[0], {**rows[1], "tools": [TOOL]}]
    assert found.notes == ["chats, of which only the assistant's words are learned"]
    assert plan(tmp_path, [[USER, ANSWER]]).examples.train == rows[:1]  # a line that is the list itself
    renamed = plan(tmp_path, [{"talk": [USER, ANSWER]}], text_column="talk").examples
    assert renamed.train == rows[:1]
    pq.write_table(pa.table({"messages": [[USER | {"name": "Emil"}, ANSWER]]}), tmp_path / "train.parquet")
    assert plan_of(tmp_path / "train.parquet").examples.train == [{"messages": [USER | {"name": "Emil"}, ANSWER]}]
    (tmp_path / "train.csv").write_text('messages\n"' + json.dumps([USER, ANSWER]).replace('"', '""') + '"\n')
    assert plan_of(tmp_path / "train.csv").examples.train == rows[:1]
    silent = plan(tmp_path, [rows[0], {"messages": [USER, ANSWER | {"content": " "}]}]).examples
    assert silent.train == rows[:1] and silent.notes[0] == "1 example without text: left out."
    assert "every text or answer is empty" in refused(tmp_path, {"messages": [USER, ANSWER | {"content": ""}]})


def test_preferences_are_read_in_every_form(tmp_path: Path) -> None:
    told = {"prompt": [USER], "chosen": [ANSWER], "rejected": [WORSE]}
    forms = [
        told,
        {"chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
        {"prompt": "Hi", "chosen": [ANSWER], "rejected": [WORSE]},
        {"prompt": "Hi", "chosen": [USER, ANSWER], "rejected": [USER, WORSE], "score": 1},
        {"prompt": [USER], "chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
    ]
    found = plan(tmp_path, forms).examples
    assert found.train == [told] * len(forms)
    assert found.labels and found.labels.kind == "preferences"
    texts = {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}
    assert plan(tmp_path, [texts]).examples.train == [texts]
    (tmp_path / "train.csv").write_text("prompt,chosen,rejected\nHi,Hello!,What?\nHi,Hello!,\n")
    found = plan_of(tmp_path / "train.csv").examples
    assert found.train == [texts] and found.notes[0] == "1 example without text: left out."
    silent = {"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER | {"content": " "}]}
    blank = [texts | {name: " "} for name in texts]
    assert plan(tmp_path, [texts, *blank]).examples.train == [texts]
    assert plan(tmp_path, [told, silent]).examples.train == [told]
    numbers = plan(tmp_path, [{"prompt": "1 + 1 =", "chosen": 2, "rejected": 3}]).examples
    assert numbers.train == [{"prompt": "1 + 1 =", "chosen": "2", "rejected": "3"}]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([USER], "row 2: the last message of 'messages' is of the role 'user': expected 'assistant'"),
        ([], "row 2: the column 'messages' must hold messages"),
        ("Hi", "row 2: the column 'messages' must hold messages, [{\"role\""),
        ([USER, "Hello!"], "row 2: message 2 of 'messages' is \"Hello!\": expected an object with role and content"),
        ([{"from": "human", "value": "Hi"}], "row 2: message 1 of 'messages' has no role"),
        ([USER, {"role": "assistant"}], "row 2: message 2 of 'messages' must have text as its content, found null"),
        ([USER, {"role": "assistant", "content": [1]}], "must have text as its content, found [1]"),
    ],
)
def test_a_malformed_chat_is_named(tmp_path: Path, messages: Any, message: str) -> None:
    assert message in refused(tmp_path, {"messages": [USER, ANSWER]}, {"messages": messages})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "row 2: 'chosen' and 'rejected' are the same"),
        ({"prompt": "a", "chosen": "b"}, "line 2: fine-tuning text-generation needs chosen + rejected or"),
        ({"chosen": "b", "rejected": "c"}, "the answers are text, and the prompt is missing"),
        ({"prompt": "a", "chosen": "b", "rejected": [WORSE]}, "'chosen' is text and 'rejected' is messages"),
        ({"chosen": [ANSWER], "rejected": [WORSE]}, "begin with different messages"),
        ({"chosen": [USER, ANSWER], "rejected": [USER]}, "'rejected' continues the prompt with nothing"),
        ({"chosen": [USER, ANSWER], "rejected": [USER, USER]}, "with a message of the role 'user'"),
        ({"prompt": [USER, ANSWER], "chosen": [ANSWER], "rejected": [WORSE]}, "the prompt ends with a message of the"),
        ({"prompt": "a", "chosen": {"text": "b"}, "rejected": "c"}, "'chosen' must hold text or messages, found"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "tools": [1]}, "'tools' must hold a list of JSON schemas"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "tools": "f"}, "'tools' must hold a list of JSON schemas"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "tools": "[1]"}, "'tools' must hold a list of JSON schemas"),
    ],
)
def test_a_preference_that_prefers_nothing_is_named(tmp_path: Path, row: Any, message: str) -> None:
    assert message in refused(tmp_path, {"prompt": "a", "chosen": "b", "rejected": "c"}, row)


def test_kinds_of_examples_do_not_mix(tmp_path: Path) -> None:
    chat = {"messages": [USER, ANSWER]}
    assert "it has 'text', the first row has 'messages'" in refused(tmp_path, chat, {"text": "Hi"})
    other = tmp_path / "eval.jsonl"
    other.write_text('{"text": "Hi"}\n')
    message = refused(tmp_path, chat, evaluation=str(other))
    assert "eval.jsonl: the training set has chats, of which only the assistant's words are learned; found" in message


def test_what_the_trainer_decides_cannot_be_set(tmp_path: Path) -> None:
    rows = [{"messages": [USER, ANSWER]}]
    for name in ("packing", "assistant_only_loss", "chat_template_path", "max_length"):
        assert f"-p {name}= cannot be set" in refused(tmp_path, *rows, params={name: True})
    assert plan(tmp_path, rows, params={"beta": 0.2}).spec.training["arguments"] == {"beta": 0.2}
    assert "not measured for text-generation with chats" in refused(
        tmp_path, *rows, *rows, metric_for_best="rewards/margins", eval_split=0.5
    )
    pairs = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 2
    assert plan(tmp_path, pairs, metric_for_best="rewards/margins", eval_split=0.5)


def test_adapters_are_stored_alone_only_where_there_are_some(tmp_path: Path) -> None:
    rows = [{"messages": [USER, ANSWER]}]
    assert "--no-merge requires --lora" in refused(tmp_path, *rows, merge=False)
    assert plan(tmp_path, rows, merge=False, lora=True).spec.training["merge"] is False
    (tmp_path / "labels.csv").write_text("text,label\na,1\nb,0\n")
    (tmp_path / "pairs.csv").write_text("anchor,positive\na,b\nc,d\n")
    for name, task, why in (
        ("labels.csv", "text-classification", "head that is trained in full"),
        ("pairs.csv", "embedding", "a whole model of sentence-transformers"),
    ):
        options = FinetuneOptions.of(task=task, model="org/model", merge=False, lora=True)
        with pytest.raises(UsageError, match=why):
            make_finetune_plan([str(tmp_path / name)], options)
