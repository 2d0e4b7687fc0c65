"""Nothing in a record makes a worker open a URL or a file: a text that looks like an address is a text."""

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.records import FileInput, Json, pack_files
from common.tasks import TASKS as KNOWN
from tests.support import tiny_media, tiny_models, tiny_multimodal, tiny_sentence_transformers, tiny_seq2seq
from tests.support.pipeline_reference import runner_of
from tests.support.tiny_models import RecordingMonitor
from tests.support.torchvision_stand_in import provide_torchvision
from workers.inference.tasks.runners import RUNNERS

_TABLE = {"name": ["map", "book"], "number": ["2", "7"]}

#: A tiny model for each task, and a record of it around a text.
TASKS: dict[str, tuple[Callable[[Path], Path], Callable[[str], Json]]] = {
    "fill-mask": (tiny_models.masked_bert, lambda text: f"{text} [MASK]"),
    "text-classification": (tiny_models.classifier, lambda text: {"text": text, "text_pair": text}),
    "token-classification": (tiny_models.tagger, lambda text: text),
    "zero-shot-classification": (
        tiny_models.natural_language_inference,
        lambda text: {"text": text, "candidate_labels": [text, "other"]},
    ),
    "feature-extraction": (tiny_models.masked_bert, lambda text: text),
    "embedding": (tiny_models.masked_bert, lambda text: text),
    "table-question-answering": (tiny_models.table_answers, lambda text: {"table": _TABLE, "query": text}),
    "text-generation": (tiny_models.causal_gpt2, lambda text: {"messages": [{"role": "user", "content": text}]}),
    "translation": (tiny_seq2seq.make_t5, lambda text: text),
    "summarization": (tiny_seq2seq.make_t5, lambda text: text),
    "text2text-generation": (tiny_seq2seq.make_t5, lambda text: text),
    "question-answering": (tiny_models.answering, lambda text: {"question": text, "context": text}),
    "rerank": (tiny_sentence_transformers.reranker, lambda text: {"query": text, "documents": [text, "other"]}),
    "sentence-similarity": (tiny_models.masked_bert, lambda text: {"source_sentence": text, "sentences": [text]}),
    "sparse-embedding": (tiny_sentence_transformers.sparse, lambda text: text),
    "multi-vector-embedding": (tiny_sentence_transformers.multi_vector, lambda text: text),
    "any-to-any": (tiny_multimodal.qwen2_audio, lambda text: {"messages": [{"role": "user", "content": text}]}),
    "decision": (
        tiny_multimodal.decisive,
        lambda text: {"state": text, "questions": {"a": {"type": "noul", "instructions": text}}},
    ),
    "text-to-audio": (tiny_multimodal.vits, lambda text: text),
}


def _image(text: str, **more: Json) -> Json:
    return FileInput({"image": text, **more}, tiny_media.image_bytes(32, 32, 1))


def _sound(text: str) -> Json:
    return FileInput(text, tiny_media.sound_bytes(tiny_media.samples(0.3, 1)))


def _image_with_prompt(text: str) -> Json:
    return FileInput({"image": text, "text": text}, tiny_media.image_bytes(32, 32, 1))


def _two_images(text: str) -> Json:
    image = tiny_media.image_bytes(32, 32, 1)
    return FileInput({"image": text, "second_image": text}, pack_files([image, image]))


def _video(text: str) -> Json:
    return FileInput(text, tiny_multimodal.clip_of(8))


#: The same for tasks over files: the file is there, and its name is a text like any other.
FILE_TASKS: dict[str, tuple[Callable[[Path], Path], Callable[[str], Json]]] = {
    "image-classification": (tiny_media.vit, _image),
    "zero-shot-image-classification": (tiny_media.clip, lambda text: _image(text, candidate_labels=[text, "other"])),
    "object-detection": (tiny_media.detr, _image),
    "image-segmentation": (tiny_media.segformer, _image),
    "depth-estimation": (tiny_media.glpn, _image),
    "image-feature-extraction": (tiny_media.vit_states, _image),
    # Its model takes labels of sixteen tokens.
    "zero-shot-object-detection": (tiny_multimodal.owlvit, lambda text: _image(text, candidate_labels=[text[:7]])),
    "mask-generation": (tiny_multimodal.sam, _image),
    "image-text-to-text": (tiny_multimodal.llava, _image_with_prompt),
    "visual-question-answering": (tiny_multimodal.vilt, lambda text: _image(text, question=text)),
    "document-question-answering": (
        tiny_multimodal.layoutlm,
        lambda text: _image(text, question=text, word_boxes=[[text, [10, 10, 60, 30]]]),
    ),
    "keypoint-matching": (tiny_multimodal.superglue, _two_images),
    "video-classification": (tiny_multimodal.videomae, _video),
    "audio-classification": (tiny_media.heard, _sound),
    "automatic-speech-recognition": (tiny_media.spoken, _sound),
}
PARAMS: dict[str, dict[str, Json]] = {
    "text-generation": {"max_new_tokens": 2},
    "translation": {"max_new_tokens": 2},
    "summarization": {"max_length": 8, "min_length": 0},
    "text2text-generation": {"max_new_tokens": 2},
    "any-to-any": {"max_new_tokens": 2},
    "image-text-to-text": {"max_new_tokens": 2},
    "mask-generation": {"points_per_crop": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0},
}


@pytest.fixture(autouse=True)
def torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Provide the one function that mask-generation takes from it."""
    provide_torchvision(monkeypatch)


class Doors:
    """Notes who connects, asks for a host, or opens the file: Python tells of it before it happens."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)
        self.opened: list[str] = []
        self.watching = False
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.watching:
            return
        if event in ("socket.connect", "socket.getaddrinfo") or (event == "open" and str(arguments[0]) == self.file):
            self.opened.append(f"{event} {arguments}")


@pytest.fixture
def listener() -> Iterator[tuple[int, list[object]]]:
    """A port, and who connected to it."""
    seen: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    seen.append(server.accept()[1])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1], seen
        server.shutdown(socket.SHUT_RDWR)


def test_every_task_of_the_table_is_tried():
    assert TASKS.keys() | FILE_TASKS.keys() | {"zero-shot-audio-classification"} == RUNNERS.keys()


@pytest.mark.parametrize("task", sorted(FILE_TASKS))
def test_paths_and_addresses_without_their_files_are_refused(
    task: str, tmp_path: Path, listener: tuple[int, list[object]]
):
    runner = runner_of(task, FILE_TASKS[task][0](tmp_path / "model"))
    picture = tmp_path / "picture.png"
    picture.write_bytes(tiny_media.image_bytes(32, 32, 1))
    port, seen = listener
    [kind] = KNOWN[task].media
    names = [str(picture), f"file://{picture}", f"http://127.0.0.1:{port}/x.png", f"https://localhost:{port}/x.wav"]
    doors = Doors(picture)
    doors.watching = True
    try:
        outcomes = runner.run([*names, *({kind: name} for name in names)], PARAMS.get(task, {}), RecordingMonitor())
    finally:
        doors.watching = False
    assert doors.opened == []
    assert seen == []
    code = "missing_field" if KNOWN[task].second_file else "missing_file"
    assert {outcome.failure and outcome.failure.code for outcome in outcomes} == {code}


@pytest.mark.parametrize("task", sorted([*TASKS, *FILE_TASKS]))
def test_texts_that_look_like_addresses_are_texts(task: str, tmp_path: Path, listener: tuple[int, list[object]]):
    make, record = (TASKS | FILE_TASKS)[task]
    runner = runner_of(task, make(tmp_path / "model"))
    secret = tmp_path / "secret.txt"
    secret.write_text("red")
    port, seen = listener
    texts = [f"http://127.0.0.1:{port}/x.png", f"https://localhost:{port}/x.wav", str(secret), f"file://{secret}"]
    texts += [f"redis://127.0.0.1:{port}", f"![x](http://127.0.0.1:{port}/x)", f'<img src="http://127.0.0.1:{port}/">']
    doors = Doors(secret)
    doors.watching = True
    try:
        outcomes = runner.run([record(text) for text in texts], PARAMS.get(task, {}), RecordingMonitor())
    finally:
        doors.watching = False
    assert doors.opened == []
    assert seen == []
    codes = {outcome.failure.code for outcome in outcomes if outcome.failure}
    assert codes <= {"too_long"}, codes
    assert any(outcome.failure is None for outcome in outcomes)


@pytest.mark.parametrize("table", ["/etc/passwd", "http://127.0.0.1:1/t.csv", ["/etc/passwd"], {"a": "/etc/passwd"}])
def test_a_table_that_is_given_as_a_path_is_refused(table: Json, tmp_path: Path):
    runner = runner_of("table-question-answering", tiny_models.table_answers(tmp_path / "model"))
    [outcome] = runner.run([{"table": table, "query": "how many"}], {}, RecordingMonitor())
    assert outcome.failure
    assert outcome.failure.code == "wrong_type"


@pytest.mark.parametrize("kind", ["image_url", "image", "audio", "video"])
def test_a_chat_message_that_brings_a_picture_opens_nothing(
    kind: str, tmp_path: Path, listener: tuple[int, list[object]]
):
    port, seen = listener
    runner = runner_of("text-generation", tiny_models.causal_gpt2(tmp_path / "model"))
    url = f"http://127.0.0.1:{port}/x.png"
    content = [{"type": kind, "url": url, kind: {"url": url}}, {"type": "text", "text": "what is this"}]
    doors = Doors(tmp_path / "none")
    doors.watching = True
    try:
        [outcome] = runner.run(
            [{"messages": [{"role": "user", "content": content}]}], {"max_new_tokens": 2}, RecordingMonitor()
        )
    finally:
        doors.watching = False
    assert outcome.failure
    assert doors.opened == []
    assert seen == []
