"""Questions about images: as the pipelines of transformers answer them, that of version 4 for visual ones."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

from common.errors import ModelError
from common.records import FileInput, Json, Outcome
from common.task_outputs import output_form
from tests.support import tiny_media, tiny_multimodal
from tests.support.pipeline_reference import assert_same, runner_of
from tests.support.tiny_models import ForwardCount, RecordingMonitor

VISUAL, DOCUMENT = "visual-question-answering", "document-question-answering"
QUESTIONS = ["the old cat?", "how many dogs", "the old cat?"]
BLOBS = [tiny_media.image_bytes(40, 30, seed) for seed in range(3)]
WORDS = [
    [["the", [10, 10, 60, 30]], ["cat", [70, 10, 120, 30]], ["sleeps", [130, 10, 200, 30]]],
    [["berlin", [0, 0, 500, 100]], ["is", [510, 0, 600, 100]], ["old", [610, 0, 1000, 100]]] * 40,
]


def run(task: str, model: Path, inputs: list[Json], **params: Json) -> list[Outcome]:
    return runner_of(task, model).run(inputs, params, RecordingMonitor())


def asked(question: str, blob: bytes) -> FileInput:
    return FileInput({"image": "x.png", "question": question}, blob)


def image(blob: bytes) -> Image.Image:
    return Image.open(io.BytesIO(blob))


def test_a_classifier_of_answers_scores_them_as_the_pipeline_of_version_4_did(tmp_path: Path):
    model = tiny_multimodal.vilt(tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    processor = transformers.AutoImageProcessor.from_pretrained(model)
    loaded = transformers.ViltForQuestionAnswering.from_pretrained(model).eval()
    runner = runner_of(VISUAL, model)
    with ForwardCount() as count:
        outcomes = runner.run([asked(*pair) for pair in zip(QUESTIONS, BLOBS, strict=True)], {}, RecordingMonitor())
    assert count.rows == 3 and count.passes < 3
    for outcome, question, blob in zip(outcomes, QUESTIONS, BLOBS, strict=True):
        with torch.inference_mode():
            pixels = processor(image(blob), return_tensors="pt")
            logits = loaded(**tokenizer(question, return_tensors="pt"), **pixels).logits[0]
        scores, ids = logits.sigmoid().topk(5)
        expected = [
            {"score": score, "answer": loaded.config.id2label[id]}
            for score, id in zip(scores.tolist(), ids.tolist(), strict=True)
        ]
        assert_same(outcome.output, expected)
    [best] = run(VISUAL, model, [FileInput("x.png", BLOBS[0])], question=QUESTIONS[0], top_k=1)
    assert_same(best.output, outcomes[0].output[:1])
    with pytest.raises(ModelError, match="max_new_tokens is for models that generate"):
        run(VISUAL, model, [asked("a", BLOBS[0])], max_new_tokens=3)


def test_a_model_that_generates_answers_gives_one_text(tmp_path: Path):
    model = tiny_multimodal.blip(tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    processor = transformers.AutoImageProcessor.from_pretrained(model)
    loaded = transformers.BlipForQuestionAnswering.from_pretrained(model).eval()
    outcomes = run(VISUAL, model, [asked(*pair) for pair in zip(QUESTIONS, BLOBS, strict=True)], max_new_tokens=6)
    for outcome, question, blob in zip(outcomes, QUESTIONS, BLOBS, strict=True):
        pixels = processor(image(blob), return_tensors="pt")
        found = loaded.generate(**tokenizer(question, return_tensors="pt"), **pixels, max_new_tokens=6)
        assert outcome.output == [{"answer": tokenizer.decode(found[0], skip_special_tokens=True).strip()}]


@pytest.mark.parametrize("params", [{}, {"top_k": 3}, {"handle_impossible_answer": True}, {"max_seq_len": 32}])
def test_the_words_of_a_document_answer_as_in_the_pipeline(tmp_path: Path, params: dict[str, Json]):
    model = tiny_multimodal.layoutlm(tmp_path / "model")
    pipe = transformers.pipeline(DOCUMENT, model=str(model), device="cpu")
    records: list[dict[str, Json]] = [
        {"question": question, "word_boxes": words} for question in QUESTIONS[:2] for words in WORDS
    ]
    outcomes = run(DOCUMENT, model, records, **params)
    assert [outcome.failure for outcome in outcomes] == [None] * len(records)
    for outcome, record in zip(outcomes, records, strict=True):
        assert_same(outcome.output, pipe([record], **params)[0])
    [with_image] = run(DOCUMENT, model, [FileInput({"image": "x.png", **records[0]}, BLOBS[0])], **params)
    assert_same(with_image.output, outcomes[0].output)


def test_a_model_that_reads_the_image_itself_generates_the_answer(tmp_path: Path):
    model = tiny_multimodal.donut(tmp_path / "model")
    pipe = transformers.pipeline(DOCUMENT, model=str(model), device="cpu")
    for outcome, question, blob in zip(
        run(DOCUMENT, model, [asked(*pair) for pair in zip(QUESTIONS, BLOBS, strict=True)], max_new_tokens=6),
        QUESTIONS,
        BLOBS,
        strict=True,
    ):
        assert outcome.failure is None
        assert outcome.output == pipe(image=image(blob), question=question)


def test_the_best_answer_of_a_document_without_any_is_null():
    form = output_form(DOCUMENT, {})
    assert form and form.convert([]) == {"answer": None}


@pytest.mark.parametrize(
    ("task", "make", "record", "code", "words"),
    [
        (VISUAL, tiny_multimodal.vilt, FileInput("x.png", BLOBS[0]), "missing_field", "needs question"),
        (VISUAL, tiny_multimodal.vilt, asked(" ", BLOBS[0]), "empty_text", "question"),
        (VISUAL, tiny_multimodal.vilt, asked("a", b"broken"), "bad_image", "does not begin"),
        (VISUAL, tiny_multimodal.vilt, asked("a", BLOBS[0][:99]), "bad_image", "cannot be decoded"),
        (VISUAL, tiny_multimodal.vilt, asked("the cat " * 60, BLOBS[0]), "too_long", "the model takes 64"),
        (DOCUMENT, tiny_multimodal.layoutlm, {"word_boxes": WORDS[0]}, "missing_field", "needs question"),
        (DOCUMENT, tiny_multimodal.layoutlm, {"question": "a"}, "missing_field", "image or word_boxes"),
        (DOCUMENT, tiny_multimodal.layoutlm, {"question": "a", "word_boxes": [["x", [1, 2, 3]]]}, "wrong_type", "$[0]"),
        (DOCUMENT, tiny_multimodal.layoutlm, {"question": "a", "word_boxes": []}, "wrong_type", "word_boxes"),
        (DOCUMENT, tiny_multimodal.layoutlm, asked("a", BLOBS[0]), "missing_library", "tesseract"),
    ],
)
def test_a_bad_record_fails_alone(
    tmp_path: Path, monkeypatch, task: str, make: Callable[[Path], Path], record: Json, code: str, words: str
):
    monkeypatch.setattr("shutil.which", lambda name: None)
    good = asked("a", BLOBS[0]) if task == VISUAL else {"question": "a", "word_boxes": WORDS[0]}
    first, second = run(task, make(tmp_path / "model"), [record, good])
    assert first.failure and (first.failure.code, second.failure) == (code, None)
    assert words in first.failure.message


def test_a_model_without_the_head_fails_the_job(tmp_path: Path):
    model = tiny_media.vit(tmp_path / "vit")
    for task in (VISUAL, DOCUMENT):
        with pytest.raises(ModelError) as caught:
            runner_of(task, model)
        assert caught.value.code == "missing_weights"
