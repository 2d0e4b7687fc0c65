"""Cards of datasets of results: made, and updated without a change to what the user wrote."""

import io
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UsageError
from common.inputs.hub_configs import card_metadata
from common.jobs import Job, JobSpec, JobStatus
from producer.hub.dataset_card import make_card, splits_there
from producer.hub.manifest import Manifest, Shard
from producer.outputs.hub_target import HubOutput

TARGET = HubOutput("maria/labels")
SPEC = JobSpec(
    id="0123456789ab",
    task="text-classification",
    model="org/model",
    params={"top_k": 1, "labels": ["a|b", "c`d"]},
    inputs=("hf:org/reviews:train", "/home/maria/secret/reviews.csv", "https://host/x.csv?key=secret"),
    created_at=1_700_000_000.0,
)
JOB = Job(SPEC, JobStatus.COMPLETED, chunks=2, records=1000, run_info={"commit": "abc123"})
MANIFEST = Manifest(SPEC.id, "train", (Shard("data/train-00000.parquet", 0, 2, 1000, 7, 0),))


def card(present: str | None = None, files: tuple[str, ...] = (), target: HubOutput = TARGET) -> str:
    return make_card(present, files, target, JOB, MANIFEST)


def test_a_new_card_tells_what_was_done() -> None:
    text = card()
    for told in (
        "# labels\n",
        "| Task | `text-classification` |",
        "| Model | `org/model` at commit `abc123` |",
        '`top_k=1`, `` labels=["a\\|b", "c`d"] ``',
        "| Input | `hf:org/reviews:train`, `reviews.csv`, `x.csv` |",
        "| Records | 1,000 of 1,000, of which 7 failed |",
        "`0123456789ab`, submitted 2023-11-14T22:13:20.000Z",
        "| Made by | hugqueue 0.1.0 |",
    ):
        assert told in text
    assert "secret" not in text
    assert card_metadata(text) == {
        "tags": ["hugqueue"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}],
    }


def test_a_card_names_the_ranges_of_vectors_without_their_numbers() -> None:
    params = {"precision": "int8", "ranges": {"source": "r.npy", "min": [0.125] * 384, "max": [0.5] * 384}}
    job = replace(JOB, spec=replace(SPEC, params=params), run_info={"vectors": "int8, ranges from r.npy"})
    text = make_card(None, (), TARGET, job, MANIFEST)
    assert "| Parameters | `precision=int8`, `ranges=r.npy` |\n| Vectors | `int8, ranges from r.npy` |" in text


def test_a_card_that_is_up_to_date_does_not_change() -> None:
    assert card(card()) == card()
    other = HubOutput("maria/labels", "other")
    both = card(card(), target=other)
    assert card(both) == both
    assert [one["split"] for one in card_metadata(both)["configs"][0]["data_files"]] == ["train", "other"]
    assert "## Split train" in both and "## Split other" in both


def test_what_the_user_wrote_is_kept() -> None:
    mine = "---\nlicense: mit  # chosen by us\nconfigs:\n- config_name: default\n  data_files:\n" + (
        "  - {split: train, path: data/train-*}\n---\n# My words\n\nBefore.\n"
    )
    text = card(mine)
    assert text.startswith(mine)
    edited = text.replace("Before.", "Edited.") + "\nAfter.\n"
    again = card(edited)
    assert again == edited
    assert again.count("## Split train") == 1


def test_a_split_joins_those_of_the_card() -> None:
    configs = "configs:\n- config_name: a\n  default: true\n  data_files: a/*.csv\n- config_name: b\n"
    mine = f"---\nlicense: mit\n{configs}---\nText\n"
    metadata = card_metadata(card(mine, ("a/1.csv",), HubOutput("maria/labels", "labels")))
    assert metadata["license"] == "mit"
    assert metadata["configs"] == [
        {
            "config_name": "a",
            "default": True,
            "data_files": [{"split": "train", "path": ["a/*.csv"]}, {"split": "labels", "path": "data/labels-*"}],
        },
        {"config_name": "b"},
    ]


def test_splits_that_file_names_show_stay_readable() -> None:
    files = ("reviews_train.csv", "reviews_test.csv", ".gitattributes", "README.md")
    assert dict(splits_there("# Text", files)) == {"train": ["reviews_train.csv"], "test": ["reviews_test.csv"]}
    [config] = card_metadata(card("# Text", files, HubOutput("maria/labels", "labels")))["configs"]
    assert config["data_files"] == [
        {"split": "train", "path": ["reviews_train.csv"]},
        {"split": "test", "path": ["reviews_test.csv"]},
        {"split": "labels", "path": "data/labels-*"},
    ]


def test_splits_of_a_repository_without_a_card_stay_readable() -> None:
    [config] = card_metadata(card(None, ("data/test-00000.parquet", "data/train-00000.parquet")))["configs"]
    assert [entry["split"] for entry in config["data_files"]] == ["test", "train"]


def test_a_directory_of_the_default_configuration_is_part_of_its_paths() -> None:
    mine = "---\nconfigs:\n- {config_name: default, data_dir: mine, data_files: [{split: test, path: '*.csv'}]}\n---\n"
    [config] = card_metadata(card(mine, ("mine/a.csv",)))["configs"]
    assert config == {
        "config_name": "default",
        "data_files": [{"split": "test", "path": ["mine/*.csv"]}, {"split": "train", "path": "data/train-*"}],
    }


def test_a_damaged_card_is_refused() -> None:
    with pytest.raises(UsageError, match=r"dataset maria/labels: README.md: configs: expected a list, found 'x'"):
        card("---\nconfigs: x\n---\n")


def test_datasets_reads_old_and_new_splits(tmp_path: Path) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["new"]}), sink)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "labels-00000.parquet").write_bytes(sink.getvalue())
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["old"]}), sink)
    (tmp_path / "train.parquet").write_bytes(sink.getvalue())
    (tmp_path / "README.md").write_text(card("# Text", ("train.parquet",), HubOutput("maria/labels", "labels")))
    found = datasets.load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert {split: rows["text"][:] for split, rows in found.items()} == {"train": ["old"], "labels": ["new"]}
