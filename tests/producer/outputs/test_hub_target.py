"""What `-o hf:...` names."""

import pytest

from common.errors import UsageError
from common.jobs import JobSpec, Output
from producer.outputs.hub_target import HubOutput
from producer.outputs.targets import open_target, parse_target


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("hf:maria/labels", HubOutput("maria/labels")),
        ("hf:maria/labels:test", HubOutput("maria/labels", "test")),
        ("hf:maria/labels:v1.large", HubOutput("maria/labels", "v1.large")),
        ("hf://datasets/maria/labels", HubOutput("maria/labels")),
        ("hf://datasets/maria/labels/", HubOutput("maria/labels")),
        ("hf://datasets/maria/labels/runs/may", HubOutput("maria/labels", folder="runs/may")),
        ("hf://buckets/maria/box/runs/", Output("hf://buckets/maria/box/runs", "parquet")),
    ],
)
def test_names_of_datasets_and_buckets(name: str, found: object) -> None:
    assert parse_target(name, None) == found
    assert isinstance(found, Output) or parse_target(str(found), None) == found


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("hf:labels", "names no dataset on the Hub: expected hf:ORG/NAME, hf:ORG/NAME:SPLIT"),
        ("hf:a/b/c", "names no dataset"),
        ("hf:../x", "names no dataset"),
        ("hf:maria/labels:", "the name of the split is empty"),
        ("hf:maria/labels:my-split", "a split is named by letters, digits and _, found 'my-split'"),
        ("hf:maria/labels:config:train", "a split is named by letters, digits and _, found 'config:train'"),
        ("hf://datasets/maria/labels@dev", "names no dataset"),
        ("hf://datasets/maria/labels/x.parquet", "expected the name of a folder, found 'x.parquet'"),
        ("hf://datasets/maria/labels/../x", "expected the name of a folder"),
        ("hf://maria/model/results", "results are written to datasets and buckets"),
    ],
)
def test_what_is_no_dataset_is_refused(name: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        parse_target(name, None)


def test_options_that_do_not_suit_are_refused() -> None:
    with pytest.raises(UsageError, match="files on the Hub are Parquet"):
        parse_target("hf:maria/labels", "jsonl")
    with pytest.raises(UsageError, match="--csv-safe is for CSV files; hf:maria/labels is not one"):
        parse_target("hf:maria/labels", None, csv_safe=True)
    for output in ("x.csv", "dir/", "s3://bucket/x/"):
        with pytest.raises(UsageError, match="--public is for datasets on the Hub"):
            parse_target(output, None, public=True)
    with pytest.raises(UsageError, match="--public is for datasets on the Hub; add -o hf:ORG/NAME"):
        parse_target(None, None, public=True)
    assert parse_target("hf:maria/labels", None, public=True) == HubOutput("maria/labels", public=True)


def test_responses_to_a_batch_file_are_no_dataset() -> None:
    with pytest.raises(UsageError, match=r"hf:maria/labels: responses to a batch file are JSON lines; name a .jsonl"):
        parse_target("hf:maria/labels", None, responses=True)


def test_a_fine_tune_job_has_no_results_for_the_hub() -> None:
    spec = JobSpec(id="0123456789ab", task="text-classification", training={}, queue="train")
    with pytest.raises(UsageError, match="`producer models push job:0123456789ab ORG/NAME` uploads it"):
        open_target(spec, "hf:maria/labels")
