"""What the training side makes of labels, checkpoints, datasets and sockets, each by itself."""

import errno
import math
import os
import shutil
import threading
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from common.errors import CodedError, ModelError, UsageError, WorkerError
from common.training.labels import Labels
from common.training.metrics import known_metrics
from tests.support.finetune_runs import TUTORIAL, Listener, base_model, make_run_config, train_here
from tests.support.processes import wait_until
from workers.training.controller.launch import Launch
from workers.training.run_config import TrainingRunConfig
from workers.training.trainer.data import Examples
from workers.training.trainer.metrics import metrics_for
from workers.training.trainer.recipes import RECIPES

REVIEWS = [{"text": text, "label": label} for text, label in TUTORIAL * 4]
FEATURES = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})


def answered(status: int) -> OSError:
    """What the Hub's library raises of an answer with that status."""
    error = OSError(f"{status} from the server")
    error.response = SimpleNamespace(status_code=status)  # type: ignore[attr-defined]
    return error


def test_a_tag_that_is_only_held_out_has_an_output_in_the_head(tmp_path: Path) -> None:
    labels = Labels("tags", ("O", "B-LOC"))
    train = [{"tokens": ["the", "cat"], "tags": ["O", "O"]}] * 4
    held_out = [{"tokens": ["in", "paris"], "tags": ["O", "B-LOC"]}]
    base = base_model(tmp_path / "base")
    run_config = make_run_config(
        tmp_path / "work", "token-classification", base, train, held_out, epochs=1, labels=labels
    )
    assert train_here(run_config)["labels"] == {"kind": "tags", "names": ["O", "B-LOC"]}


def test_training_processes_do_not_receive_the_url_to_notify(tmp_path: Path) -> None:
    made = make_run_config(tmp_path / "work", "text-classification", tmp_path, REVIEWS)
    replace(made, job=replace(made.job, notify="https://hooks.example.com/swordfish")).write(tmp_path / "run.json")
    assert "swordfish" not in (tmp_path / "run.json").read_text()
    assert TrainingRunConfig.read(tmp_path / "run.json") == made


def test_labels_sent_along_must_be_those_of_the_examples(tmp_path: Path) -> None:
    labels = Labels("single_label", ("0", "2"))
    run_config = make_run_config(tmp_path / "work", "text-classification", tmp_path, REVIEWS, labels=labels)
    with pytest.raises(UsageError, match="label '1' does not occur"):
        Examples(run_config)


def test_the_best_checkpoint_is_found_again_on_another_machine(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base")
    rates = {"epochs": 3, "learning_rate": 5.0, "metric_for_best": "loss"}  # each epoch makes it worse
    first = make_run_config(tmp_path / "one" / "1-1-a", "text-classification", base, REVIEWS, REVIEWS, **rates)
    best = train_here(first)
    here = tmp_path / "two"
    shutil.move(tmp_path / "one", here)
    [last] = [path for path in here.glob("*/checkpoint-*") if path.name == f"checkpoint-{best['steps']}"]
    assert best["best_step"] != best["steps"]
    run_config = make_run_config(here / "1-2-b", "text-classification", base, REVIEWS, REVIEWS, **rates)
    again = train_here(replace(run_config, checkpoint=str(last)))
    assert again["best_step"] == best["best_step"]
    assert again["metrics"]["loss"] == pytest.approx(best["metrics"]["loss"], rel=1e-5)


def test_a_text_of_no_token_is_not_learned(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_model(tmp_path / "base"))
    rows = [{"text": "\u200b"}, {"text": "the cat"}]
    for task in ("fill-mask", "text-generation"):
        columns = RECIPES[task].encode(tokenizer, rows, Labels(""), 16).columns
        assert len(columns["input_ids"]) == 1, task


@pytest.mark.parametrize("missing", [-1, None])
def test_a_row_of_the_hub_without_a_label_is_named(
    missing: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, missing]}, features=FEATURES)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    run_config = make_run_config(tmp_path / "work", "text-classification", tmp_path, [], train_source="hf:org/reviews")
    with pytest.raises(UsageError, match="hf:org/reviews row 2: a label must be a number from 0 to 1"):
        Examples(run_config)


def test_a_missing_column_of_the_hub_is_named_with_those_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=FEATURES)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    more = {"train_source": "hf:org/reviews", "label_column": "stars"}
    run_config = make_run_config(tmp_path / "work", "text-classification", tmp_path, [], **more)
    with pytest.raises(UsageError, match="'stars'; found: text, label"):
        Examples(run_config)


def test_a_template_makes_the_texts_of_a_dataset_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = datasets.Features(
        {**FEATURES, "topic": datasets.ClassLabel(names=["food", "film"]), "day": datasets.Value("date32")}
    )
    columns = {"text": ["a", None], "label": [1, 0], "topic": [1, -1], "day": [date(2026, 1, 2), None]}
    rows = datasets.Dataset.from_dict(columns, features=features)
    asked: list[tuple[Any, ...]] = []

    def load(*arguments: Any, **options: Any) -> Any:
        asked.append((*arguments, options["split"]))
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load)
    more = {"train_source": "hf:org/reviews:small:train[:9%]", "template": "{topic} {label} {day}: {text}"}
    run_config = make_run_config(tmp_path / "work", "text-classification", tmp_path, [], **more)
    assert Examples(run_config).train == [
        {"text": "film good 2026-01-02: a", "label": "good"},
        {"text": " bad : ", "label": "bad"},
    ]
    assert asked == [("org/reviews", "small", "train[:9%]")]
    wrong = replace(run_config, options=replace(run_config.options, template="{body}"))
    with pytest.raises(UsageError, match=r"no column 'body' \(--template\); it has: text, label, topic, day"):
        Examples(wrong)


@pytest.mark.parametrize(
    ("part", "loaded"),
    [
        ("", ("org/reviews", "train")),
        (":test", ("org/reviews", "test")),
        (":small", ("org/reviews", "small", "train")),
        (":small:train[:9%]", ("org/reviews", "small", "train[:9%]")),
    ],
)
def test_a_dataset_of_the_hub_has_configurations_and_splits(
    part: str, loaded: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=FEATURES)
    asked: list[tuple[Any, ...]] = []

    def load(*arguments: Any, split: str) -> Any:
        asked.append((*arguments, split))
        if split == "small":
            raise ValueError('Unknown split "small". Should be one of ["train", "test"].')
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda _: ["small", "large"])
    more = {"train_source": f"hf:org/reviews{part}"}
    assert len(Examples(make_run_config(tmp_path, "text-classification", tmp_path, [], **more)).train) == 2
    assert asked[-1] == loaded


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (ConnectionError("no route"), (WorkerError, "hub_unavailable")),
        (answered(404), (ModelError, "dataset_not_found")),
        (answered(401), (ModelError, "dataset_not_found")),
        (answered(429), (WorkerError, "hub_unavailable")),
        (answered(503), (WorkerError, "hub_unavailable")),
        (OSError(errno.ENOSPC, "no space"), (WorkerError, "disk_full")),
        (datasets.exceptions.DatasetNotFoundError("no such dataset"), (ModelError, "dataset_not_found")),
        (ValueError("Unknown split"), (ModelError, "dataset_not_found")),
    ],
)
def test_only_what_another_worker_would_not_find_either_fails_the_job(
    fault: Exception, found: tuple[type[CodedError], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise fault

    monkeypatch.setattr(datasets, "load_dataset", load)
    run_config = make_run_config(tmp_path / "work", "text-classification", tmp_path, [], train_source="hf:org/reviews")
    with pytest.raises(found[0], match="hf:org/reviews:train cannot be loaded") as caught:
        Examples(run_config)
    assert caught.value.code == found[1]


def test_a_base_model_that_lacks_more_than_its_head_is_refused(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    halved = {name: value for name, value in weights.items() if "layer.1." not in name}
    assert len(halved) < len(weights)
    save_file(halved, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks weights of the model itself: bert\.encoder\.layer\.1") as caught:
        train_here(make_run_config(tmp_path / "work", "text-classification", base, REVIEWS))
    assert caught.value.code == "missing_weights"


def test_a_launch_leaves_no_thread_behind(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with Launch(
        tmp_path / "run_config.json", tmp_path / "s", tmp_path / "log", cuda=False, processes=1, env=os.environ
    ) as launch:
        launch.kill()
    wait_until(lambda: set(threading.enumerate()) <= before, 10, "the end of the threads")


def test_a_nan_metric_becomes_null() -> None:
    listener = Listener()
    listener.control.send("progress", metrics={"loss": math.nan})
    wait_until(lambda: bool(listener.received("progress")), 10, "the message")
    assert listener.received("progress") == [{"kind": "progress", "metrics": {"loss": None}}]


@pytest.mark.parametrize(
    ("task", "labels", "width"),
    [
        ("text-classification", Labels("single_label", ("a", "b")), (2, 2)),
        ("text-classification", Labels("multi_label", ("a", "b")), (2, 2)),
        ("text-classification", Labels("regression"), (2, 1)),
        ("token-classification", Labels("tags", ("NOUN", "VERB")), (1, 2, 2)),
        ("token-classification", Labels("tags", ("O", "B-LOC")), (1, 2, 2)),
    ],
)
def test_the_metrics_that_are_promised_are_those_that_are_measured(
    task: str, labels: Labels, width: tuple[int, ...]
) -> None:
    measure = metrics_for(labels)
    right = np.eye(2) if labels.kind == "multi_label" else np.arange(2).reshape(width[:-1])
    assert measure is not None
    assert {*measure(np.ones(width), right), "loss"} == set(known_metrics(labels))


def test_a_run_configuration_carries_names_that_are_not_utf8(tmp_path: Path) -> None:
    config = make_run_config(tmp_path / "work", "text-classification", tmp_path, [])
    config = replace(config, job=replace(config.job, inputs=("tr\udcf6.jsonl",)))
    config.write(tmp_path / "run.json")
    assert TrainingRunConfig.read(tmp_path / "run.json") == config
