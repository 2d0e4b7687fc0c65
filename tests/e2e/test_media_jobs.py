"""Jobs over files, from the command line through a real queue."""

from pathlib import Path

import pytest
import transformers

from tests.support import tiny_media
from tests.support.cli_processes import Terminal, running_queue
from tests.support.pipeline_reference import assert_same
from tests.support.processes import lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


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
