"""Decisions, as the pipeline of transformers gives them."""

import base64
from pathlib import Path

import pytest
import transformers

from common.records import Json, Outcome
from common.task_outputs import output_form
from tests.support import tiny_media, tiny_multimodal
from tests.support.pipeline_reference import assert_same, runner_of
from tests.support.tiny_models import RecordingMonitor

TASK = "decision"
QUESTIONS: dict[str, Json] = {
    "refund": {"type": "noul", "instructions": "Is a refund requested?"},
    "about": {"type": "choice", "instructions": "What is it about?", "criteria": {"order": "an order", "other": None}},
    "mood": {"type": "score", "instructions": "How is the mood?", "criteria": ["bad", "good", "great"]},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_multimodal.decisive(tmp_path_factory.mktemp("model"))


def run(model: Path, inputs: list[Json], **params: Json) -> list[Outcome]:
    return runner_of(TASK, model).run(inputs, params, RecordingMonitor())


def test_every_kind_of_question_gets_the_answer_that_the_pipeline_gives(model: Path):
    # As objects: of a Qwen2 directory, transformers 5.23 makes a decision model of nine billion random weights first.
    loaded, tokenizer = (
        transformers.AutoModelForCausalLM.from_pretrained(model),
        transformers.AutoTokenizer.from_pretrained(model),
    )
    pipe = transformers.pipeline(TASK, model=loaded, tokenizer=tokenizer, device="cpu")
    records: list[Json] = [{"state": state, "questions": QUESTIONS} for state in ("the old cat", {"dogs": [1, 2]})]
    form = output_form(TASK, {})
    for record, outcome in zip(records, run(model, records), strict=True):
        assert outcome.failure is None
        assert_same(outcome.output, pipe(record))
        assert form
        answers = form.convert(outcome.output)
        assert [answer["question"] for answer in answers] == list(QUESTIONS)
        assert [option["option"] for option in answers[1]["probabilities"]] == ["order", "other"]


IMAGE = base64.b64encode(tiny_media.image_bytes(40, 30, 1)).decode()


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"questions": {}}, "wrong_type", "at least one question"),
        ({"questions": {"a": {"type": "guess"}}}, "wrong_type", "must be one of noul, choice, score"),
        ({"questions": None}, "missing_field", "state + questions"),
        ({"assets": {"img": "https://example.com/cat.png"}}, "missing_file", "do not open URLs or paths"),
        ({"assets": {"img": {"data_base64": IMAGE[:40]}}}, "bad_image", "cannot be decoded"),
        ({"assets": {"img": {"data_base64": IMAGE}}}, "wrong_type", "Images need a model"),
        ({"assets": []}, "wrong_type", "assets must be an object"),
        ({"state": "the cat " * 500}, "too_long", "the model takes 512"),
    ],
)
def test_a_bad_record_fails_alone(model: Path, change: dict[str, Json], code: str, words: str):
    good: Json = {"state": "the cat", "questions": QUESTIONS}
    first, second = run(model, [good | change, good])
    assert first.failure and (first.failure.code, second.failure) == (code, None)
    assert words in first.failure.message
