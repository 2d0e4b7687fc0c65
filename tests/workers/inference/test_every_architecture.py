"""Every architecture of the installed transformers loads, and gives a record beside others what it gives it alone."""

import random
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from transformers.models.auto import modeling_auto

from tests.support.pipeline_reference import assert_neighbors_change_nothing, runner_of
from tests.support.tiny_architectures import UNTRIED, architectures, tiny_model
from tests.support.tiny_models import WORDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

_CHANCE = random.Random(1)
#: No shorter ones: models that pool their tokens refuse them, alone as well.
TEXTS = [" ".join(_CHANCE.choices(WORDS, k=words)) for words in (4, 5, 6, 9, 17, 30, 4, 40)]
QUESTIONS = [{"question": "what is this ?", "context": text} for text in TEXTS]
GREEDY = {"max_new_tokens": 4, "num_beams": 1, "do_sample": False}
TASKS: dict[str, tuple[Any, list[Any], dict[str, Any]]] = {
    "embedding": (modeling_auto.MODEL_MAPPING, TEXTS, {}),
    "text-classification": (modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, TEXTS, {}),
    "question-answering": (modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING, QUESTIONS, {}),
    "text-generation": (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING, TEXTS, GREEDY),
    "summarization": (modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, TEXTS, GREEDY),
}


@pytest.fixture
def directories() -> Iterator[Any]:
    """Give a new directory at each call; each goes when the next one comes, for there are hundreds."""
    last: list[TemporaryDirectory[str]] = []

    def directory() -> Path:
        for one in last:
            one.cleanup()
        last[:] = [TemporaryDirectory()]
        return Path(last[0].name)

    yield directory
    for one in last:
        one.cleanup()


@pytest.mark.parametrize("task", TASKS)
def test_every_architecture_gives_for_a_record_what_it_gives_for_it_alone(task, directories):
    mapping, records, params = TASKS[task]
    wrong: dict[str, str] = {}
    for config_class, model_class in architectures(mapping):
        name = model_class.__name__
        try:
            directory = tiny_model(config_class, model_class, directories())
            outcomes = assert_neighbors_change_nothing(runner_of(task, directory), records, **params)
            failures = {outcome.failure.message for outcome in outcomes if outcome.failure}
            if failures:
                wrong[name] = min(failures)
        except Exception as error:  # noqa: BLE001 - whatever an architecture raises is what this is about
            wrong[name] = f"{type(error).__name__}: {error}"
    tried = {model_class.__name__ for _, model_class in architectures(mapping)}
    unlisted = [f"{name}: {why[:300]}" for name, why in wrong.items() if name not in UNTRIED]
    assert not unlisted, "\n".join(unlisted)
    assert {name for name in UNTRIED if name in tried} == wrong.keys()
