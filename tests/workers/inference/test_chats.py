"""Texts asked as chats: what transformers' pipeline gives for the same messages."""

from pathlib import Path
from typing import Any

import pytest

from common.chat import user_message, with_system_message
from common.errors import ModelError
from tests.support import tiny_models
from tests.support.pipeline_reference import assert_same, pipeline_outputs, run, runner_of
from tests.support.tiny_models import RecordingMonitor

GREEDY = {"do_sample": False, "max_new_tokens": 10}
TEXTS = ["what is the capital of france?", "a", "how many people live in berlin, tokyo and seoul?", "나는 학교에 간다"]
SYSTEM = "you like cats"


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.causal_gpt2(tmp_path_factory.mktemp("gpt2"))


def chats(system: str | None = None) -> list[dict[str, Any]]:
    return [{"messages": with_system_message(user_message(text), system)} for text in TEXTS]


@pytest.mark.parametrize("system", [None, SYSTEM])
@pytest.mark.parametrize("own", [{}, {"return_full_text": False}, {"stop_sequence": "e"}])
def test_a_text_gives_what_the_pipeline_gives_for_its_messages(gpt2: Path, system: str | None, own: Any) -> None:
    extra = {"system": system} if system else {"chat": True}
    outcomes = run("text-generation", gpt2, TEXTS, **GREEDY, **own, **extra)
    assert [outcome.failure for outcome in outcomes] == [None] * len(TEXTS)
    expected = pipeline_outputs("text-generation", gpt2, chats(system), **GREEDY, **own)
    for outcome, output in zip(outcomes, expected, strict=True):
        assert_same(outcome.output, output)


def test_without_a_chat_the_text_is_continued(gpt2: Path) -> None:
    raw = pipeline_outputs("text-generation", gpt2, TEXTS, **GREEDY)
    for params in ({}, {"chat": False}):
        assert [outcome.output for outcome in run("text-generation", gpt2, TEXTS, **GREEDY, **params)] == raw
    assert [outcome.output for outcome in run("text-generation", gpt2, TEXTS, **GREEDY, chat=True)] != raw


def test_the_jobs_system_message_precedes_messages_that_have_none(gpt2: Path) -> None:
    records = [*chats(), *chats("they like dogs")]
    found = run("text-generation", gpt2, records, **GREEDY, system=SYSTEM)
    expected = pipeline_outputs("text-generation", gpt2, [*chats(SYSTEM), *chats("they like dogs")], **GREEDY)
    assert [outcome.output for outcome in found] == expected


def test_a_seeded_text_is_that_of_its_messages(gpt2: Path) -> None:
    params = {"do_sample": True, "max_new_tokens": 12, "seed": 7}
    asked = run("text-generation", gpt2, TEXTS, **params, chat=True)
    assert [outcome.output for outcome in asked] == [
        outcome.output for outcome in run("text-generation", gpt2, chats(), **params)
    ]


def test_an_empty_text_fails_alone(gpt2: Path) -> None:
    bad, good = run("text-generation", gpt2, [" ", "a"], **GREEDY, chat=True)
    assert bad.failure is not None and bad.failure.code == "empty_text"
    assert good.failure is None


@pytest.mark.parametrize("params", [{"chat": True}, {"system": SYSTEM}])
def test_a_model_without_a_chat_template_fails_the_job(tmp_path: Path, params: dict[str, Any]) -> None:
    runner = runner_of("text-generation", tiny_models.causal_gpt2(tmp_path, chat=False))
    with pytest.raises(ModelError, match="--no-chat") as caught:
        runner.run(TEXTS, {**GREEDY, **params}, RecordingMonitor())
    assert caught.value.code == "no_chat_template"


@pytest.mark.parametrize(
    "params",
    [{"chat": "yes"}, {"system": 5}, {"system": ""}, {"chat": False, "system": "a"}, {"chat": True, "prefix": "a"}],
)
def test_parameters_that_make_no_chat_are_refused(gpt2: Path, params: dict[str, Any]) -> None:
    with pytest.raises(ModelError) as caught:
        runner_of("text-generation", gpt2).run(TEXTS, params, RecordingMonitor())
    assert caught.value.code == "bad_param"
