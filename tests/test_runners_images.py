"""Images through the runner give what `transformers.pipeline` gives for their files one by one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import transformers

from common.values import Attached, Json, Outcome
from tests import tiny_media
from tests.one_by_one import assert_same, runner_of
from tests.tiny_models import ForwardCount, RecordingWatch


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return tiny_media.photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_media.vit(tmp_path_factory.mktemp("vit"))


def attached(paths: Sequence[Path]) -> list[Json]:
    return [Attached(str(path), path.read_bytes()) for path in paths]


def run(task: str, model: Path, inputs: Sequence[Json], **params: Json) -> list[Outcome]:
    return runner_of(task, model).run(inputs, params, RecordingWatch())


def assert_same_as_pipeline(task: str, model: Path, paths: Sequence[Path], **params: Any) -> None:
    pipe = transformers.pipeline(task, model=str(model), device="cpu")
    outcomes = run(task, model, attached(paths), **params)
    assert [outcome.failure for outcome in outcomes] == [None] * len(paths)
    for outcome, path in zip(outcomes, paths, strict=True):
        assert_same(outcome.output, pipe(str(path), **params))


@pytest.mark.parametrize("params", [{}, {"top_k": 2}, {"function_to_apply": "sigmoid"}])
def test_an_image_gets_the_labels_that_the_pipeline_gives(vit: Path, photos: list[Path], params: dict[str, Json]):
    assert_same_as_pipeline("image-classification", vit, photos, **params)


def test_images_share_forward_passes(vit: Path, photos: list[Path]):
    runner = runner_of("image-classification", vit)
    with ForwardCount() as count:
        runner.run(attached(photos), {}, RecordingWatch())
    assert (count.passes, count.rows) == (1, len(photos))


def test_a_turned_photo_is_looked_at_upright(vit: Path, tmp_path: Path):
    from PIL import Image

    path = tmp_path / "turned.jpg"
    with Image.open(tiny_media.photos(tmp_path)[0]) as image:
        exif = image.getexif()
        exif[0x0112] = 6  # orientation: to be turned by 90 degrees
        image.save(path, exif=exif)
    assert_same_as_pipeline("image-classification", vit, [path])


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (b"", "no image by its first bytes"),
        (b"<svg></svg>", "no image by its first bytes"),
        (tiny_media.image_bytes(40, 30, 0)[:200], "cannot be decoded"),
        (tiny_media.image_bytes(40, 30, 0, "JPEG")[:20], "cannot be decoded"),
    ],
)
def test_a_broken_image_fails_alone(vit: Path, photos: list[Path], blob: bytes, words: str):
    first, second, third = run(
        "image-classification", vit, [*attached(photos[:1]), Attached("x.png", blob), *attached(photos[1:2])]
    )
    assert first.output and third.output
    assert second.failure and second.failure.code == "bad_image"
    assert words in second.failure.message


def test_an_image_that_would_fill_the_memory_fails_alone(
    vit: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 64 * 64 - 1)
    outcomes = run("image-classification", vit, attached(photos[1:4]))
    assert [outcome.failure and outcome.failure.code for outcome in outcomes] == [None, "bad_image", None]


@pytest.mark.parametrize("value", ["photo.png", {"image": "photo.png"}, 7, None])
def test_a_record_without_its_file_opens_none(vit: Path, value: Json):
    [outcome] = run("image-classification", vit, [value])
    assert outcome.failure and outcome.failure.code == "missing_file"


def test_a_model_without_an_image_processor_fails_the_job(vit: Path, tmp_path: Path):
    import shutil

    from common.errors import ModelError

    model = Path(shutil.copytree(vit, tmp_path / "model"))
    (model / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="image processor"):
        runner_of("image-classification", model)
