"""Jobs over files, from the command line through a real queue."""

import base64
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import transformers
from sentence_transformers import SentenceTransformer

from common.records import Json
from tests.support import tiny_media, tiny_multimodal
from tests.support.cli_processes import Terminal, running_queue
from tests.support.pipeline_reference import assert_same
from tests.support.processes import lines

QUESTION: Json = {"type": "text", "text": "Berlin?"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def test_photos_are_described_by_a_prompt_from_their_columns(folder: Path) -> None:
    paths = tiny_media.photos(folder / "catalog")[:3]
    model = tiny_multimodal.llava(folder / "llava")
    table = ["id,photo,animal", *(f"{n},{path},cat" for n, path in enumerate(paths)), "3,no.png,dog", "4,,dog"]
    (folder / "catalog.csv").write_text("\n".join(table))
    blob = base64.b64encode(paths[1].read_bytes()).decode()
    sources: list[Json] = [{"base64": blob}, {"url": "https://example.com/cat.png"}]
    chats = [[{"role": "user", "content": [{"type": "image", **source}, QUESTION]}] for source in sources]
    (folder / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    options = ("--task", "image-to-text", "-m", str(model), "-p", "max_new_tokens=6", "-p", "do_sample=false")
    with running_queue(folder, HUGQUEUE_MODEL_ROOTS=str(folder)) as queue:
        by_column = ("--column", "photo", "--template", "a {animal} and a dog")
        queue.run("submit", *options, "catalog.csv", *by_column, "-o", "catalog.jsonl", status=3)
        queue.run("submit", *options, "chats.jsonl", "-o", "answers.jsonl", status=3)
        queue.run("submit", *options, *map(str, paths), "-p", "text=Berlin is old", "-o", "files.jsonl")
        refused = queue.run("submit", *options, str(paths[0]), "--template", "{x}", status=2)
    assert "a file has none" in refused.stderr
    pipe = transformers.pipeline("image-text-to-text", model=str(model), device="cpu")

    def expected(text: str, path: Path) -> str:
        content = [{"type": "image", "path": str(path)}, {"type": "text", "text": text}]
        given = {"max_new_tokens": 6, "do_sample": False}
        [found] = pipe(text=[{"role": "user", "content": content}], return_full_text=False, generate_kwargs=given)
        return str(found["generated_text"])

    rows = lines((folder / "catalog.jsonl").read_text())
    assert [row["output"] for row in rows[:3]] == [expected("a cat and a dog", path) for path in paths]
    assert [row["error_code"] for row in rows[3:]] == ["no_file", "no_file"]
    assert [row["animal"] for row in rows] == ["cat", "cat", "cat", "dog", "dog"]
    answered, refused_image = lines((folder / "answers.jsonl").read_text())
    assert answered["output"] == expected("Berlin?", paths[1])
    assert refused_image["error_code"] == "missing_file"
    files = lines((folder / "files.jsonl").read_text())
    assert [row["output"] for row in files] == [expected("Berlin is old", path) for path in paths]


def test_sound_becomes_files_and_two_images_and_videos_reach_their_models(folder: Path) -> None:
    speech, matcher = tiny_multimodal.vits(folder / "vits"), tiny_multimodal.superglue(folder / "superglue")
    watcher = tiny_multimodal.videomae(folder / "videomae")
    (folder / "sentences.jsonl").write_text('{"text": "the old river"}\n{"text": " "}\n{"text": "a dog"}\n')
    one, other, *_ = tiny_media.photos(folder / "pairs")
    (folder / "pairs.csv").write_text(f"image,second_image\n{one},{other}\n")
    (folder / "clips").mkdir()
    (folder / "clips" / "a.mp4").write_bytes(tiny_multimodal.clip_of(8))
    (folder / "clips" / "b.mp4").write_bytes(tiny_multimodal.clip_of(2))
    with running_queue(folder, HUGQUEUE_MODEL_ROOTS=str(folder)) as queue:
        spoken = ("submit", "--task", "text-to-speech", "-m", str(speech), "-p", "seed=1", "sentences.jsonl")
        queue.run(*spoken, "-o", "speech/", "--output-format", "files", status=3)
        matched = ("submit", "--task", "keypoint-matching", "-m", str(matcher), "pairs.csv")
        queue.run(*matched, "-o", "pairs.jsonl")
        refused = queue.run(*matched, "-o", "files/", "--output-format", "files", status=2)
        queue.run("submit", "--task", "video-classification", "-m", str(watcher), "clips", "-o", "c.jsonl", status=3)
    assert "is for tasks that give images or sound" in refused.stderr
    rows = lines((folder / "speech" / "results.jsonl").read_text())
    assert [row.get("output", {}).get("audio") for row in rows] == ["000000.wav", None, "000002.wav"]
    assert rows[1]["error_code"] == "empty_text"
    for row in (rows[0], rows[2]):
        sound, rate = soundfile.read(folder / "speech" / row["output"]["audio"])
        assert len(sound) and rate == row["output"]["sampling_rate"] == 8000
    assert len(list((folder / "speech").iterdir())) == 3
    [pair] = lines((folder / "pairs.jsonl").read_text())
    expected = transformers.pipeline("keypoint-matching", model=str(matcher), device="cpu")([str(one), str(other)])
    assert_same(pair["output"], expected)
    assert pair["second_image"] == str(other)
    whole, short = lines((folder / "c.jsonl").read_text())
    pipe = transformers.pipeline("video-classification", model=str(watcher), device="cpu")
    found = pipe(str(folder / "clips" / "a.mp4"))
    assert_same(whole["output"], [{"label": one["label"], "score": one["score"]} for one in found])
    assert short["error_code"] == "bad_video"


def test_photos_come_back_labeled_by_their_paths(folder: Path) -> None:
    paths = tiny_media.photos(folder / "photos")
    (folder / "photos" / "broken.png").write_bytes(paths[0].read_bytes()[:100])
    model = tiny_media.vit(folder / "model")
    options = ("--task", "image-classification", "-m", str(model), "--chunk-size", "3")
    with running_queue(folder, HUGQUEUE_MODEL_ROOTS=str(folder), HUGQUEUE_SHARED=str(folder / "shared")) as queue:
        done = queue.run("submit", *options, "photos", "-o", "labels.jsonl", status=3)
        tiny_media.photos(folder / "shared")
        queue.run("submit", *options, "shared", "-o", "shared.jsonl")
        shown = Terminal(queue, "submit", *options, "photos/photo-0.png", "--wait").text()
    rows = {row["id"]: row for row in lines((folder / "labels.jsonl").read_text())}
    assert "8 records" in done.stderr
    in_place = lines((folder / "shared.jsonl").read_text())
    assert [row["image"] for row in in_place] == [str(folder / "shared" / path.name) for path in paths]
    assert_same([row["output"] for row in in_place], [rows[f"photos/{path.name}"]["output"] for path in paths])
    pipe = transformers.pipeline("image-classification", model=str(model), device="cpu")
    for path in paths:
        row = rows.pop(f"photos/{path.name}")
        assert row["image"] == f"photos/{path.name}"
        assert_same(row["output"], [{"label": one["label"], "score": one["score"]} for one in pipe(str(path))])
    [broken] = rows.values()
    assert (broken["id"], broken["error_code"]) == ("photos/broken.png", "bad_image")
    best = pipe(str(paths[0]))[0]
    assert f"{best['label']} {best['score']:.3f}" in shown


def test_pictures_are_found_by_words(folder: Path) -> None:
    paths = tiny_media.photos(folder / "album")
    (folder / "album" / "broken.png").write_bytes(paths[0].read_bytes()[:60])
    (folder / "words.txt").write_text("the old cat\na dog\n")
    model = tiny_media.clip(folder / "clip")
    call = ("submit", "--task", "embedding", "-m", str(model))
    with running_queue(folder, HUGQUEUE_MODEL_ROOTS=str(folder), HUGQUEUE_SHARED=str(folder / "public")) as queue:
        queue.run(*call, "words.txt", "-o", "words.npy")
        queue.run(*call, "album", "--chunk-size", "4", "-o", "album.parquet", status=3)
        copies = tiny_media.photos(folder / "public")[:2]
        (folder / "public" / "list.jsonl").write_text(
            "".join(json.dumps({"image": str(path)}) + "\n" for path in copies)
        )
        queue.run(*call, "public/list.jsonl", "-o", "public.npy")  # the worker opens the files
    reference = SentenceTransformer(str(model), device="cpu")
    np.testing.assert_allclose(np.load(folder / "words.npy"), reference.encode(["the old cat", "a dog"]), atol=1e-5)
    table = pq.read_table(folder / "album.parquet")
    assert table.schema.field("output").type == pa.list_(pa.float32(), 16)
    rows = {row.pop("image"): row for row in table.to_pylist()}
    assert rows.pop("album/broken.png")["error_code"] == "bad_image"
    assert list(rows) == [f"album/{path.name}" for path in paths]
    expected = reference.encode(list(map(str, paths)))
    np.testing.assert_allclose([row["output"] for row in rows.values()], expected, atol=1e-5)
    np.testing.assert_allclose(np.load(folder / "public.npy"), expected[:2], atol=1e-5)
