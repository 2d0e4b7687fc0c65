"""Vectors of images, recordings and texts by one model: what sentence-transformers gives for each alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sentence_transformers import SentenceTransformer

from common.records import FileInput, Json
from tests.support import tiny_media
from tests.support import tiny_sentence_transformers as tiny
from tests.support.embeddings import minilm_directory
from tests.support.pipeline_reference import run, runner_of
from tests.support.tiny_models import RecordingMonitor
from workers.inference.tasks.module_runners import ModuleEmbeddingRunner

TEXTS = ["the old cat sleeps", "a dog", "a dog in paris"]
MODELS: dict[str, Callable[[Path], Path]] = {
    "CLIPModel": lambda directory: tiny.with_module("CLIPModel", directory),
    "Transformer": lambda directory: tiny.with_module("Transformer", directory),
    "CLIP without modules.json": tiny_media.clip,
    "vision-language": tiny.vision_language,
}


def files(kind: str, *paths: Path, **more: Json) -> list[FileInput]:
    return [FileInput({kind: str(path), **more}, path.read_bytes()) for path in paths]


def encoded(directory: Path, inputs: list[Any], **options: Any) -> np.ndarray:
    model = SentenceTransformer(str(directory), device="cpu")
    return np.stack([model.encode([one], **options)[0] for one in inputs])


def vectors(outcomes: list[Any]) -> np.ndarray:
    assert [outcome.failure for outcome in outcomes] == [None] * len(outcomes)
    return np.stack([outcome.output for outcome in outcomes])


@pytest.mark.parametrize("name", MODELS)
def test_images_and_texts_get_the_vectors_that_the_library_gives_them(tmp_path: Path, name: str) -> None:
    photos = tiny_media.photos(tmp_path / "photos")
    directory = MODELS[name](tmp_path / "model")
    runner, monitor = runner_of("embedding", directory), RecordingMonitor()
    assert isinstance(runner, ModuleEmbeddingRunner)
    found = vectors(runner.run([TEXTS[0], *files("image", *photos), *TEXTS[1:]], {"prompt": "a "}, monitor))
    expected = encoded(directory, [TEXTS[0], *map(str, photos), *TEXTS[1:]], prompt="a ")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert sorted(batch for batch in monitor.batches if len(batch) > 3) == [list(range(1, len(photos) + 1))]
    cut = vectors(runner.run(files("image", *photos), {"truncate_dim": 4, "normalize": True}, monitor))
    expected = encoded(directory, [*map(str, photos)], truncate_dim=4, normalize_embeddings=True)
    np.testing.assert_allclose(cut, expected, atol=1e-5)


def test_a_text_and_an_image_get_one_vector_from_a_model_that_takes_both(tmp_path: Path) -> None:
    photos = tiny_media.photos(tmp_path / "photos")
    directory = tiny.vision_language(tmp_path / "model")
    found = vectors(run("embedding", directory, files("image", *photos, text="a dog")))
    expected = encoded(directory, [{"text": "a dog", "image": str(path)} for path in photos])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_recordings_and_texts_get_the_vectors_that_the_library_gives_them(tmp_path: Path) -> None:
    directory = tiny_media.clap(tmp_path / "model")
    sounds = [tiny_media.samples(seconds, seed) for seed, seconds in enumerate((1, 0.5, 0.9))]
    records = [FileInput({"audio": "a.wav"}, tiny_media.sound_bytes(sound)) for sound in sounds]
    found = vectors(run("embedding", directory, [*records, *TEXTS]))
    expected = encoded(directory, [*({"array": sound, "sampling_rate": 16_000} for sound in sounds), *TEXTS])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_half_precision_gives_nearly_the_same_vectors(tmp_path: Path) -> None:
    directory = tiny_media.clap(tmp_path / "model")  # unlike CLIP, it does not convert its input itself
    record = FileInput({"audio": "a.wav"}, tiny_media.sound_bytes(tiny_media.samples(1, 0)))
    runners = [runner_of("embedding", directory, dtype=dtype) for dtype in ("float32", "bfloat16")]
    [whole], [half] = (runner.run([record], {}, RecordingMonitor()) for runner in runners)
    assert half.failure is None
    assert np.corrcoef(whole.output, half.output)[0, 1] > 0.999


def test_images_are_upright_and_in_color(tmp_path: Path) -> None:
    upright = Image.open(tiny_media.photos(tmp_path / "photos")[1]).convert("RGB")
    rotated, gray = tmp_path / "rotated.png", tmp_path / "gray.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by a quarter
    upright.rotate(90, expand=True).save(rotated, exif=exif)
    upright.convert("L").save(gray)
    directory = tiny_media.clip(tmp_path / "model")
    found = vectors(run("embedding", directory, files("image", rotated, gray)))
    np.testing.assert_allclose(found, encoded(directory, [upright, upright.convert("L").convert("RGB")]), atol=1e-5)


def test_what_the_model_does_not_take_fails_alone(tmp_path: Path) -> None:
    photo, *_ = tiny_media.photos(tmp_path / "photos")
    [good] = files("image", photo)
    cases: list[tuple[Json, str]] = [
        (FileInput({"image": "a.png"}, photo.read_bytes()[:60]), "bad_image"),
        (FileInput({"image": "a.png", "text": "a dog"}, good.blob), "wrong_type"),  # CLIP takes one or the other
        (FileInput({"audio": "a.wav"}, tiny_media.sound_bytes(tiny_media.samples(1, 0))), "wrong_type"),
        ({"image": str(photo)}, "missing_file"),
        ({"image": "http://127.0.0.1:9/a.png"}, "missing_file"),
        ({"title": "a"}, "missing_field"),
        (" ", "empty_text"),
    ]
    runner = runner_of("embedding", tiny_media.clip(tmp_path / "model"))
    *bad, last = runner.run([*(record for record, _ in cases), good], {}, RecordingMonitor())
    assert [outcome.failure and outcome.failure.code for outcome in bad] == [code for _, code in cases]
    assert "this model takes text or image" in bad[1].failure.message
    assert last.failure is None
    text, image = runner.run(["a dog", good], {"split_tokens": 20}, RecordingMonitor())
    assert text.failure is None and "split_tokens" in image.failure.message


def test_a_model_of_texts_says_that_it_takes_no_images(tmp_path: Path) -> None:
    photos = files("image", *tiny_media.photos(tmp_path)[:1])
    image, text = run("embedding", minilm_directory(), [*photos, "a dog"])
    assert (image.failure.code, text.failure) == ("wrong_type", None)
    assert image.failure.message.startswith("The record has image; this model takes text.")
