"""Images through the runner give what `transformers.pipeline` gives for their files one by one."""

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image

from common.errors import ModelError, WorkerError
from common.records import FileInput, Json, Outcome, pack_files
from tests.support import tiny_media, tiny_multimodal
from tests.support.pipeline_reference import assert_same, runner_of
from tests.support.tiny_models import ForwardCount, RecordingMonitor
from tests.support.torchvision_stand_in import provide_torchvision


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return tiny_media.photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_media.vit(tmp_path_factory.mktemp("vit"))


def attached(paths: Sequence[Path]) -> list[Json]:
    return [FileInput(str(path), path.read_bytes()) for path in paths]


def run(task: str, model: Path, inputs: Sequence[Json], **params: Json) -> list[Outcome]:
    return runner_of(task, model).run(inputs, params, RecordingMonitor())


def assert_same_as_pipeline(task: str, model: Path, paths: Sequence[Path], **params: Any) -> None:
    pipe = transformers.pipeline(task, model=str(model), device="cpu")
    outcomes = run(task, model, attached(paths), **params)
    assert [outcome.failure for outcome in outcomes] == [None] * len(paths)
    for outcome, path in zip(outcomes, paths, strict=True):
        assert_same(outcome.output, pipe(str(path), **params))


@pytest.mark.parametrize("params", [{}, {"top_k": 2}, {"function_to_apply": "sigmoid"}])
def test_an_image_gets_the_labels_that_the_pipeline_gives(vit: Path, photos: list[Path], params: dict[str, Json]):
    assert_same_as_pipeline("image-classification", vit, photos, **params)


ZERO_SHOT: dict[str, Json] = {"candidate_labels": ["red cat", "old city", "bird"]}


@pytest.mark.parametrize(
    ("task", "make", "params"),
    [
        ("zero-shot-image-classification", tiny_media.clip, ZERO_SHOT),
        ("zero-shot-image-classification", tiny_media.clip, ZERO_SHOT | {"hypothesis_template": "the {} likes"}),
        ("object-detection", tiny_media.detr, {"threshold": 0.1}),
        ("zero-shot-object-detection", tiny_multimodal.owlvit, ZERO_SHOT | {"threshold": 0.0}),
        ("zero-shot-object-detection", tiny_multimodal.owlvit, ZERO_SHOT | {"threshold": 0.0, "top_k": 3}),
        ("image-feature-extraction", tiny_media.vit_states, {}),
        ("image-feature-extraction", tiny_media.vit_states, {"pool": True}),
    ],
)
def test_other_tasks_give_what_the_pipeline_gives(
    task: str, make: Callable[[Path], Path], params: dict[str, Json], photos: list[Path], tmp_path: Path
):
    model = make(tmp_path / "model")
    pipe = transformers.pipeline(task, model=str(model), device="cpu")
    outcomes = run(task, model, attached(photos), **params)
    assert [outcome.failure for outcome in outcomes] == [None] * len(photos)
    expected = [pipe(str(path), **params) for path in photos]
    assert any(expected)
    for outcome, wanted in zip(outcomes, expected, strict=True):
        assert_same(outcome.output, wanted)


def test_labels_of_a_record_win_and_a_text_of_labels_is_split(photos: list[Path], tmp_path: Path):
    model = tiny_media.clip(tmp_path / "model")
    blob = photos[0].read_bytes()
    own, commas = (FileInput({"image": "x", "candidate_labels": labels}, blob) for labels in ("cat, dog", ","))
    none, empty = run("zero-shot-image-classification", model, [*attached(photos[:1]), commas])
    first, second = run("zero-shot-image-classification", model, [own, *attached(photos[:1])], **ZERO_SHOT)
    assert {row["label"] for row in first.output} == {"cat", "dog"}
    assert {row["label"] for row in second.output} == set(ZERO_SHOT["candidate_labels"])
    assert none.failure and none.failure.code == "missing_field"
    assert empty.failure and empty.failure.code == "wrong_type"


@pytest.mark.parametrize(
    ("task", "make", "key"),
    [("image-segmentation", tiny_media.segformer, "mask"), ("depth-estimation", tiny_media.glpn, "depth")],
)
def test_masks_and_maps_are_the_images_of_the_pipeline_as_png(
    task: str, make: Callable[[Path], Path], key: str, photos: list[Path], tmp_path: Path
):
    model = make(tmp_path / "model")
    pipe = transformers.pipeline(task, model=str(model), device="cpu")
    if task == "depth-estimation":  # its image processor rounds sides down to 32 pixels
        photos = [photos[2], photos[5]]
    for outcome, path in zip(run(task, model, attached(photos)), photos, strict=True):
        assert outcome.failure is None
        found, wanted = outcome.output, pipe(str(path))
        pairs = [(found, wanted)] if isinstance(wanted, dict) else list(zip(found, wanted, strict=True))
        assert pairs
        for one, other in pairs:
            with Image.open(io.BytesIO(one[key])) as image:
                difference = np.asarray(image).astype(int) - np.asarray(other[key]).astype(int)
            assert (np.abs(difference) > 1).mean() < 0.01
            assert one.get("label") == other.get("label")


def test_masks_of_everything_are_those_of_the_pipeline(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = tiny_multimodal.sam(tmp_path / "model")
    provide_torchvision(monkeypatch)
    params = {"points_per_crop": 4, "points_per_batch": 6, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    pipe = transformers.pipeline("mask-generation", model=str(model), device="cpu")
    outcomes = run("mask-generation", model, attached(photos[:3]), **params, output_bboxes_mask=True)
    for outcome, path in zip(outcomes, photos, strict=False):
        assert outcome.failure is None
        expected = pipe(str(path), **params, output_bboxes_mask=True)
        assert_same([mask["score"] for mask in outcome.output], expected["scores"].tolist())
        assert [list(mask["box"].values()) for mask in outcome.output] == expected["bounding_boxes"].int().tolist()
        assert outcome.output
        for found, wanted in zip(outcome.output, expected["masks"], strict=True):
            with Image.open(io.BytesIO(found["mask"])) as image:
                assert (np.asarray(image) == np.asarray(wanted) * 255).all()


def test_points_of_two_images_are_matched_as_in_the_pipeline(photos: list[Path], tmp_path: Path):
    model = tiny_multimodal.superglue(tmp_path / "model")
    pipe = transformers.pipeline("keypoint-matching", model=str(model), device="cpu")
    named = {"image": "a.png", "second_image": "b.png"}
    pairs = [(photos[0], photos[3]), (photos[2], photos[2]), (photos[4], photos[6])]
    records: list[Json] = [FileInput(named, pack_files([path.read_bytes() for path in pair])) for pair in pairs]
    broken = FileInput(named, pack_files([photos[0].read_bytes(), b"broken"]))
    alone = FileInput(named, photos[0].read_bytes())
    *outcomes, first, second, third = run("keypoint-matching", model, [*records, broken, alone, named], threshold=0.0)
    expected = [pipe([str(path) for path in pair], threshold=0.0) for pair in pairs]
    assert any(expected)
    for outcome, wanted in zip(outcomes, expected, strict=True):
        assert outcome.failure is None
        assert_same(outcome.output, wanted)
    failures = [outcome.failure and outcome.failure.code for outcome in (first, second, third)]
    assert failures == ["bad_image", "missing_file", "missing_file"]


def test_a_library_that_is_not_installed_is_named_with_the_extra_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(WorkerError) as caught:
        runner_of("mask-generation", tmp_path)
    assert caught.value.code == "missing_library"
    assert "torchvision" in caught.value.message and "worker,vision" in caught.value.message


def test_a_pooler_that_nobody_trained_is_refused_where_it_is_used(vit: Path, photos: list[Path]):
    assert run("image-feature-extraction", vit, attached(photos[:1]))[0].failure is None
    with pytest.raises(ModelError) as caught:
        run("image-feature-extraction", vit, attached(photos[:1]), pool=True)
    assert caught.value.code == "missing_weights"


def test_images_share_forward_passes(vit: Path, photos: list[Path]):
    runner = runner_of("image-classification", vit)
    with ForwardCount() as count:
        runner.run(attached(photos), {}, RecordingMonitor())
    assert (count.passes, count.rows) == (1, len(photos))


def test_a_turned_photo_is_looked_at_upright(vit: Path, tmp_path: Path):
    path = tmp_path / "turned.jpg"
    with Image.open(tiny_media.photos(tmp_path)[0]) as image:
        exif = image.getexif()
        exif[0x0112] = 6  # orientation: to be turned by 90 degrees
        image.save(path, exif=exif)
    assert_same_as_pipeline("image-classification", vit, [path])


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (b"", "does not begin like an image"),
        (b"<svg></svg>", "does not begin like an image"),
        (tiny_media.image_bytes(40, 30, 0)[:200], "cannot be decoded"),
        (tiny_media.image_bytes(40, 30, 0, "JPEG")[:20], "cannot be decoded"),
    ],
)
def test_a_broken_image_fails_alone(vit: Path, photos: list[Path], blob: bytes, words: str):
    first, second, third = run(
        "image-classification", vit, [*attached(photos[:1]), FileInput("x.png", blob), *attached(photos[1:2])]
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


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("photo.png", "missing_file"),
        ({"image": "photo.png"}, "missing_file"),
        ({"image": 7}, "missing_file"),
        (7, "wrong_type"),
        (None, "wrong_type"),
    ],
)
def test_a_record_without_its_file_opens_none(vit: Path, value: Json, code: str):
    [outcome] = run("image-classification", vit, [value])
    assert outcome.failure and outcome.failure.code == code


def test_a_model_without_an_image_processor_fails_the_job(vit: Path, tmp_path: Path):
    import shutil

    from common.errors import ModelError

    model = Path(shutil.copytree(vit, tmp_path / "model"))
    (model / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="image processor"):
        runner_of("image-classification", model)


def test_a_file_under_what_is_shared_is_read_in_place_and_no_other(vit: Path, photos: list[Path], tmp_path: Path):
    shared = tmp_path / "shared"
    shared.mkdir()
    for name in ("own.png", "large.png"):
        (shared / name).write_bytes(photos[0].read_bytes())
    with (shared / "large.png").open("ab") as file:
        file.write(bytes(100_000))
    (shared / "link.png").symlink_to(photos[0])
    rules = {"shared": (str(shared),), "max_file_bytes": 100_000}
    runner = runner_of("image-classification", vit, **rules)
    names = ["own.png", "none.png", "large.png", "link.png", "../shared/own.png"]
    inputs: list[Json] = [str(shared / name) for name in names]
    outcomes = runner.run([*inputs, str(photos[0]), "own.png"], {}, RecordingMonitor())
    assert [outcome.failure and outcome.failure.code for outcome in outcomes] == [
        None, "no_file", "too_large", "missing_file", None, "missing_file", "missing_file"
    ]  # fmt: skip
    assert_same(outcomes[0].output, run("image-classification", vit, attached(photos[:1]))[0].output)
