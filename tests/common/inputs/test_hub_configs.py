"""Configurations and splits of datasets, compared with what `datasets` makes of the same files."""

from pathlib import Path

import datasets
import pytest
from datasets.data_files import DataFilesDict, get_data_patterns

from common.errors import UsageError
from common.inputs.hub_configs import (
    Configuration,
    card_configurations,
    choose_files,
    converted_configurations,
    default_splits,
    folder_configurations,
)

LAYOUTS = {
    "sharded": [
        "data/test-00000-of-00001.csv",
        "data/train-00000-of-00002.csv",
        "data/extra-00000-of-00001.csv",
        "x.csv",
    ],
    "directories": ["train/a.csv", "train/b/c.csv", "my dev/1.csv", "testing/x.csv", "other/train.csv"],
    "names": ["reviews_train.csv", "train.csv", "dev-2.csv", "evaluation.csv", "pretraining.csv", "sub/test 1.csv"],
    "all": ["b.csv", "a/c.csv", ".hidden.csv", "__cache__/d.csv", ".git/train.csv"],
    "numbers": ["train1.csv", "val2.csv", "testimony.csv"],
}
CARD = """---
license: mit
configs:
- config_name: reviews
  default: true
  data_files:
  - split: train
    path: ["reviews/part*/*.csv", "more/*.csv"]
  - split: held_out
    path: reviews/held/*.csv
- config_name: folder
  data_dir: other
- config_name: listed
  data_files: ["more/*.csv", "reviews/held/*.csv"]
- config_name: one
  data_dir: more
  data_files: "*.csv"
---
# Reviews
"""
CARD_FILES = [
    "reviews/part1/a.csv",
    "reviews/part2/b.csv",
    "reviews/held/c.csv",
    "more/d.csv",
    "other/train.csv",
    "other/sub/test.csv",
]


def write(directory: Path, paths: list[str], card: str | None = None) -> None:
    for path in paths:
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(f"text\n{path}\n")
    if card is not None:
        (directory / "README.md").write_text(card)


@pytest.mark.parametrize("paths", LAYOUTS.values(), ids=LAYOUTS)
def test_file_names_give_the_splits_that_datasets_finds(paths: list[str], tmp_path: Path) -> None:
    write(tmp_path, paths)
    theirs = DataFilesDict.from_patterns(get_data_patterns(str(tmp_path)), base_path=str(tmp_path))
    found = {split: sorted(str(Path(file).relative_to(tmp_path)) for file in files) for split, files in theirs.items()}
    ours = default_splits(sorted(paths))
    assert {split: sorted(files) for split, files in ours.items()} == found
    assert list(ours) == list(found)


def test_a_card_gives_the_configurations_that_datasets_reads(tmp_path: Path) -> None:
    directory = tmp_path / "dataset"
    write(directory, CARD_FILES, CARD)
    found = card_configurations(CARD, sorted(CARD_FILES))
    assert [one.name for one in found] == datasets.get_dataset_config_names(str(directory))
    for one in found:
        theirs = datasets.load_dataset(str(directory), one.name, cache_dir=str(tmp_path / "cache"))
        assert {split: rows["text"][:] for split, rows in theirs.items()} == {
            split: list(files) for split, files in one.splits.items()
        }
    assert [one.name for one in found if one.default] == ["reviews"]


def test_a_card_without_configurations_gives_none() -> None:
    assert card_configurations("# Only text", ["a.csv"]) == []
    assert card_configurations("---\nlicense: mit\n---\n", ["a.csv"]) == []


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ("configs: train", "configs: expected a list, found 'train'"),
        ("configs: [{data_files: x}]", "expected a config_name"),
        ("configs: [{config_name: a, data_files: 3}]", "expected patterns, or objects with split and path"),
        ("configs: [{config_name: a, data_files: [{path: x}]}]", "expected patterns, or objects with split and path"),
        ("configs: [", "its metadata is not valid"),
    ],
)
def test_a_damaged_card_is_refused(metadata: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        card_configurations(f"---\n{metadata}\n---\n", ["a.csv"])


CONFIGURATIONS = [
    Configuration("main", {"train": ["1"], "test": ["2"], "short": ["3"]}, default=True),
    Configuration("short", {"train": ["4"]}),
    Configuration("long", {"validation": ["5"], "test": ["6"]}),
]


def test_a_word_is_a_split_of_the_default_configuration_or_a_configuration() -> None:
    assert choose_files("o/d", CONFIGURATIONS, []) == ["1"]
    assert choose_files("o/d", CONFIGURATIONS, ["test"]) == ["2"]
    assert choose_files("o/d", CONFIGURATIONS, ["main"]) == ["1"]
    assert choose_files("o/d", CONFIGURATIONS, ["long", "test"]) == ["6"]
    assert choose_files("o/d", CONFIGURATIONS, ["short", "train"]) == ["4"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["short"], "'short' is a configuration of o/d, and a split of its default configuration 'main'. Name both"),
        (
            ["long"],
            r"hf:o/d:long has several splits \(validation, test\). Name one, for example hf:o/d:long:validation",
        ),
        (["other"], r"Those it has: main \(train, test, short\); short \(train\); long \(validation, test\)"),
        (["long", "train"], "no such configuration or split in o/d"),
    ],
)
def test_what_is_not_there_or_not_clear_is_refused(words: list[str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        choose_files("o/d", CONFIGURATIONS, words)


def test_without_a_default_configuration_one_must_be_named() -> None:
    with pytest.raises(
        UsageError, match=r"has several configurations \(short, long\). Name one, for example hf:o/d:short"
    ):
        choose_files("o/d", CONFIGURATIONS[1:], [])
    with pytest.raises(UsageError, match="Name one before the split, for example hf:o/d:short:test"):
        choose_files("o/d", CONFIGURATIONS[1:], ["test"])
    assert choose_files("o/d", CONFIGURATIONS[1:], ["short"]) == ["4"]


def test_folders_of_splits_are_configurations() -> None:
    found = folder_configurations(["cola/train.csv", "cola/test.csv", "sst2/train.csv", "all/x.csv", "train.csv"])
    assert {one.name: dict(one.splits) for one in found} == {
        "cola": {"train": ["cola/train.csv"], "test": ["cola/test.csv"]},
        "sst2": {"train": ["sst2/train.csv"]},
    }


def test_the_branch_with_the_conversion_has_configurations() -> None:
    paths = ["en/train/0000.parquet", "en/train/0001.parquet", "de/partial-test/0000.parquet", "README.md"]
    assert [(one.name, dict(one.splits), one.default) for one in converted_configurations(paths)] == [
        ("en", {"train": paths[:2]}, False),
        ("de", {"test": paths[2:3]}, False),
    ]
    assert converted_configurations(["default/train/0000.parquet"])[0].default
