"""Files as inputs of tasks over images: which are found, what goes with each record, and what fails alone."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import RecordError, UsageError
from common.inputs import find_inputs
from common.inputs.splitting import splittable_builders
from common.own_columns import KEEP_ALL
from common.payloads.codec import decode_records, encode_records
from common.records import Json, Record, pack_files, unpack_files
from common.tasks import TASKS
from common.template import Template
from producer.submit.chunking import FILE_CHUNK_BYTES, ChunkPlan, cut_chunks

PNG = b"\x89PNG\r\n\x1a\n" + b"x" * 100
JPEG = b"\xff\xd8\xff\xe0" + b"y" * 100
TASK = TASKS["image-classification"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    (tmp_path / "photos" / "b.png").write_bytes(PNG)
    (tmp_path / "photos" / "A.JPG").write_bytes(JPEG)
    (tmp_path / "photos" / "deep" / "c.jpeg").write_bytes(JPEG)
    (tmp_path / "photos" / "notes.md").write_text("not an image")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(*inputs: str, limit: int = 1000, **options) -> list[Record]:
    found = find_inputs(inputs, TASK, **options)
    found.check(limit)
    return list(found.records(limit))


def test_a_file_is_a_record_its_path_the_id(folder: Path):
    assert read("photos/b.png", "photos/A.JPG") == [
        Record("photos/b.png", "photos/b.png", blob=PNG),
        Record("photos/A.JPG", "photos/A.JPG", blob=JPEG),
    ]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("photos", ["photos/A.JPG", "photos/b.png", "photos/deep/c.jpeg"]),
        ("photos/*.png", ["photos/b.png"]),
        ("photos/**/*.*g", ["photos/b.png", "photos/deep/c.jpeg"]),
    ],
)
def test_directories_and_patterns_give_their_files_in_order(folder: Path, name: str, found: list[str]):
    assert [record.id for record in read(name)] == found


@pytest.mark.parametrize("pattern", ["**/*.png", "./**/*.png", "photos/**", "ph*/**/*.png", "[p]hotos/**/b.p*"])
def test_patterns_over_looping_links_end(folder: Path, pattern: str):
    for number in range(8):
        (folder / "photos" / "deep" / f"loop{number}").symlink_to(folder / "photos")
    found = [record.id for record in read(pattern)]
    assert [name.removeprefix("./") for name in found if name.endswith(".png")] == ["photos/b.png"]
    assert all(name.startswith("./") == pattern.startswith("./") for name in found)


def test_image_columns_of_datasets_are_read(folder: Path):
    cells = [{"bytes": PNG, "path": "a.png"}, {"bytes": JPEG, "path": None}, {"bytes": None, "path": "photos/b.png"}]
    cells += [{"bytes": b"not an image", "path": "x.png"}, None, {"bytes": PNG * 100, "path": "large.png"}]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(cells, kind), "label": range(6)}), "photos.parquet")
    records = read("photos.parquet")
    assert [(r.id, r.input, r.blob) for r in records[:3]] == [
        (0, "a.png", PNG),
        (1, "photos.parquet row 2", JPEG),
        (2, "photos/b.png", PNG),
    ]
    codes = [record.failure and record.failure.code for record in records]
    assert codes == [None, None, None, "bad_image", "missing_field", "too_large"]
    table = pq.read_table("photos.parquet")
    kept = [record.own for record in read("photos.parquet", keep=KEEP_ALL)]
    assert [str(kind) for kind in kept[0].types.values()] == ["string", "int64"]
    assert [own.as_dict()["image"] for own in kept] == [path and path["path"] for path in table["image"].to_pylist()]
    pq.write_table(pa.table({"image": [PNG, JPEG]}), "plain.parquet")
    assert [record.blob for record in read("plain.parquet")] == [PNG, JPEG]


@pytest.mark.parametrize(
    ("name", "text", "options"),
    [
        ("list.txt", "photos/b.png\nphotos/A.JPG\n", {}),
        ("list.csv", "id,image\n0,photos/b.png\n1,photos/A.JPG\n", {}),
        ("list.csv", "id,photo\n0,photos/b.png\n1,photos/A.JPG\n", {}),
        ("list.csv", "id,photo,by\n0,photos/b.png,me\n1,photos/A.JPG,you\n", {"column": "photo"}),
        ("list.jsonl", '"photos/b.png"\n{"image": "photos/A.JPG"}\n', {}),
        ("list", '{"file": "photos/b.png"}\n{"file": "photos/A.JPG"}\n', {"column": "file", "format": "jsonl"}),
    ],
)
def test_a_list_of_paths_gives_their_files(folder: Path, name: str, text: str, options: dict[str, str]):
    (folder / name).write_text(text)
    records = read(name, **options)
    assert [(int(r.id), r.input, r.blob, r.failure) for r in records] == [
        (0, "photos/b.png", PNG, None),
        (1, "photos/A.JPG", JPEG, None),
    ]


def test_what_is_wrong_with_a_file_fails_it_alone(folder: Path):
    (folder / "large.png").write_bytes(PNG + b"x" * 1000)
    (folder / "text.png").write_text("a text")
    (folder / "empty.png").touch()
    rows = ["none.png", "photos", "large.png", "text.png", "empty.png", 7, "a\0b.png", "photos/b.png"]
    (folder / "list.jsonl").write_text("".join(json.dumps({"image": row}) + "\n" for row in rows))
    records = read("list.jsonl")
    codes = [record.failure and record.failure.code for record in records]
    assert codes == [
        "no_file", "no_file", "too_large", "bad_image", "bad_image", "wrong_type", "no_file", None
    ]  # fmt: skip
    assert [record.blob for record in records] == [None] * 7 + [PNG]
    assert records[2].failure and "large.png" in records[2].failure.message


@pytest.mark.parametrize(
    ("name", "words"), [("none.png", "No such file: none.png"), ("none/*.png", "no image"), ("empty", "no image")]
)
def test_a_name_that_stands_for_nothing_is_refused(folder: Path, name: str, words: str):
    (folder / "empty").mkdir()
    with pytest.raises(UsageError, match=words):
        read(name)


def test_a_file_url_is_its_path_and_a_remote_directory_is_refused(folder: Path):
    task = TASKS["image-classification"]
    found = next(folder.rglob("*.png"))
    [record] = find_inputs([f"file://{found.absolute()}"], task).records(10**6)
    assert (record.id, record.failure, record.blob) == (str(found.absolute()), None, found.read_bytes())
    with pytest.raises(UsageError, match=r"pass the files at a URL, for example s3://bucket/photos/\*\.jpg"):
        find_inputs(["s3://bucket/photos/"], task).check(10**6)


def test_the_payload_carries_the_files(folder: Path):
    (folder / "list.txt").write_text("photos/b.png\nnone.png\n")
    records = read("list.txt")
    assert decode_records(encode_records(records)) == records


def test_chunks_are_cut_by_the_bytes_of_the_files():
    records = [Record(number, "x.png", blob=bytes(FILE_CHUNK_BYTES // 2)) for number in range(5)]
    assert [len(chunk) for chunk, _ in cut_chunks(records, ChunkPlan(64))] == [2, 2, 1]


def test_of_what_is_shared_only_the_path_travels(folder: Path):
    (folder / "list.jsonl").write_text(
        '{"image": "photos/b.png"}\n{"image": "s3://bucket/c.png"}\n{"image": "x.png"}\n'
    )
    shared = (str(folder / "photos"), "s3://bucket")
    records = list(find_inputs(["list.jsonl"], TASK).records(1000, shared=shared))
    assert [(r.input, r.blob) for r in records[:2]] == [
        (str(folder / "photos/b.png"), None),
        ("s3://bucket/c.png", None),
    ]
    assert records[2].failure and records[2].failure.code == "no_file"


def test_a_task_over_two_files_gets_both_or_reads_both_in_place(folder: Path):
    rows = [("photos/b.png", "photos/A.JPG"), ("photos/b.png", "photos/none.png"), ("photos/notes.md", "photos/b.png")]
    (folder / "pairs.csv").write_text("image,second_image\n" + "".join(f"{one},{other}\n" for one, other in rows))
    task = TASKS["keypoint-matching"]
    whole, absent, wrong = find_inputs(["pairs.csv"], task).records(1000)
    assert whole.blob and unpack_files(whole.blob, 2) == [PNG, JPEG]
    assert [record.failure and record.failure.code for record in (absent, wrong)] == ["no_file", "bad_image"]
    in_place = next(find_inputs(["pairs.csv"], task).records(1000, shared=[str(folder)]))
    assert in_place.blob is None
    assert in_place.input == {name: str(folder / path) for name, path in zip(whole.input, rows[0], strict=True)}
    partly = next(find_inputs(["pairs.csv"], task).records(1000, shared=[str(folder / "photos" / "b.png")]))
    assert partly.blob == whole.blob
    with pytest.raises(RecordError, match="came without its files"):
        unpack_files(PNG, 2)
    with pytest.raises(RecordError, match="1 files; expected 2"):
        unpack_files(pack_files([PNG]), 2)


def test_a_chat_without_an_image_of_its_own_needs_no_file(folder: Path):
    chat = [{"role": "user", "content": "hi"}]
    (folder / "chats.jsonl").write_text(json.dumps({"messages": chat}) + '\n{"image": "photos/b.png", "text": "a"}\n')
    first, second = find_inputs(["chats.jsonl"], TASKS["image-text-to-text"]).records(1000)
    assert (first.input, first.blob, first.failure) == ({"messages": chat}, None, None)
    assert (second.input, second.blob) == ({"image": "photos/b.png", "text": "a"}, PNG)


def test_videos_are_found_by_their_extensions_and_known_by_their_first_bytes(folder: Path):
    (folder / "clips").mkdir()
    for name, head in {"a.mp4": b"\0\0\0\x18ftypmp42", "b.webm": b"\x1aE\xdf\xa3", "c.avi": b"RIFF1234AVI "}.items():
        (folder / "clips" / name).write_bytes(head + bytes(50))
    (folder / "clips" / "d.mov").write_bytes(JPEG)
    *good, bad = find_inputs(["clips"], TASKS["video-classification"]).records(1000)
    assert [(record.id, record.failure) for record in good] == [
        (f"clips/{n}", None) for n in ("a.mp4", "b.webm", "c.avi")
    ]
    assert bad.failure and bad.failure.code == "bad_video"


def embedding_records(*inputs: str, **options: Any) -> list[tuple[Json, bytes | None]]:
    records = list(find_inputs(list(inputs), TASKS["embedding"], **options).records(1000))
    assert [record.failure for record in records] == [None] * len(records)
    return [(record.input, record.blob) for record in records]


def test_files_and_texts_are_inputs_of_a_task_that_takes_both(folder: Path):
    (folder / "words.txt").write_text("photos/b.png\n")
    (folder / "photos" / "a.wav").write_bytes(b"RIFF1234WAVE")
    assert embedding_records("photos", "words.txt", "photos/*.png") == [
        ({"image": "photos/A.JPG"}, JPEG),
        ({"audio": "photos/a.wav"}, b"RIFF1234WAVE"),
        ({"image": "photos/b.png"}, PNG),
        ({"image": "photos/deep/c.jpeg"}, JPEG),
        ("photos/b.png", None),
        ({"image": "photos/b.png"}, PNG),
    ]
    with pytest.raises(UsageError, match="no known extension"):
        find_inputs(["photos/notes.md"], TASKS["embedding"])


def test_columns_say_which_records_are_files(folder: Path):
    (folder / "table.csv").write_text("text,image,title\na cat,,x\n,photos/b.png,y\na dog,photos/b.png,z\n")
    photo = {"image": "photos/b.png"}
    both = [("a cat", None), ({"text": "", **photo}, PNG), ({"text": "a dog", **photo}, PNG)]
    assert embedding_records("table.csv") == both
    assert embedding_records("table.csv", column="title") == [("x", None), ("y", None), ("z", None)]
    (folder / "photos.jsonl").write_text('{"image": "photos/b.png", "title": "z", "text": "a"}\n')
    assert embedding_records("photos.jsonl", column="image") == [({"image": "photos/b.png"}, PNG)]
    template = Template.parse("<{title}>")
    assert embedding_records("photos.jsonl", template=template) == [("<z>", None)]
    made = embedding_records("photos.jsonl", column="image", template=template)
    assert made == [({"image": "photos/b.png", "text": "<z>"}, PNG)]


def test_a_record_of_two_files_or_with_an_address_is_refused(folder: Path):
    (folder / "rows.jsonl").write_text(
        '{"image": "photos/b.png", "audio": "a.wav"}\n{"image": "https://x.org/a.png", "text": "a"}\n'
    )
    two, address = find_inputs(["rows.jsonl"], TASKS["embedding"]).records(1000)
    assert two.failure and two.failure.code == "wrong_type"
    assert address.failure and address.failure.code == "no_file" and "--column text" in address.failure.message


def test_columns_of_bytes_are_texts_unless_they_are_named_as_files(folder: Path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    photos = pa.array([{"bytes": PNG, "path": "a.png"}], kind)
    pq.write_table(pa.table({"photo": photos, "text": pa.array([b"a cat"]), "raw": pa.array([b"x"])}), "t.parquet")
    assert embedding_records("t.parquet") == [("a cat", None)]
    assert embedding_records("t.parquet", column="photo") == [({"image": "a.png"}, PNG)]
    [record] = find_inputs(["t.parquet"], TASKS["embedding"], keep=KEEP_ALL).records(1000)
    assert record.own.as_dict() == {"photo": "a.png", "text": "YSBjYXQ=", "raw": "eA=="}
    pq.write_table(pa.table({"audio": pa.array([b"RIFF1234WAVE"])}), "a.parquet")
    assert embedding_records("a.parquet") == [({"audio": "a.parquet row 1"}, b"RIFF1234WAVE")]


def test_inputs_that_name_files_are_not_read_in_place(folder: Path):
    (folder / "texts.jsonl").write_text('{"text": "a"}\n')
    (folder / "photos.jsonl").write_text('{"text": "a"}\n{"image": "photos/b.png"}\n')
    shared = [str(folder)]
    assert splittable_builders(find_inputs(["texts.jsonl"], TASKS["embedding"]), shared)
    for names in (["photos.jsonl"], ["texts.jsonl", "photos"]):
        assert splittable_builders(find_inputs(names, TASKS["embedding"]), shared) == []
