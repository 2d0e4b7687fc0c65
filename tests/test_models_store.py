"""The model store, in a directory and at another address: whole models, one that counts, checkpoints that travel."""

import json
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import ModelError, UsageError
from common.models_store import job_of, open_store, store_address
from common.settings import load_settings
from common.stored_models import ModelsStore
from workers.training.checkpoints import is_whole, latest_whole, seal, steps_of

JOB = "0123456789ab"
Open = Callable[[str], ModelsStore]


@pytest.fixture(params=["directory", "memory"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the same store as one machine or another would: each has a cache of its own."""
    address = str(tmp_path / "models") if request.param == "directory" else f"memory://models-{uuid.uuid4().hex}/m"
    return lambda machine: open_store(address, tmp_path / machine)


def add_model(store: ModelsStore, attempt: str, text: str) -> None:
    directory = store.work_directory(JOB, attempt) / "model"
    directory.mkdir()
    (directory / "config.json").write_text(text)
    (directory / "model.json").write_text(json.dumps({"model": f"job:{JOB}", "text": text}))
    store.add_model(JOB, attempt, directory)


def add_checkpoint(store: ModelsStore, attempt: str, step: int) -> Path:
    checkpoint = store.work_directory(JOB, attempt) / f"checkpoint-{step}"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"weights" * 100)
    (checkpoint / "trainer_state.json").write_text("{}")
    return checkpoint


def test_a_model_is_found_by_its_job_on_another_machine(opened: Open) -> None:
    store = opened("one")
    add_model(store, "0-1-aaaaaaaa", "first")
    store.choose(JOB, "0-1-aaaaaaaa")
    other = opened("two")
    assert (other.fetch(JOB) / "config.json").read_text() == "first"
    assert [model.card["text"] for model in other.models()] == ["first"]


def test_the_chosen_attempt_counts_and_the_other_cannot_overwrite_it(opened: Open) -> None:
    store = opened("one")
    add_model(store, "0-2-bbbbbbbb", "second")
    store.choose(JOB, "0-2-bbbbbbbb")
    late = opened("two")
    add_model(late, "0-1-aaaaaaaa", "first")
    assert (opened("three").fetch(JOB) / "config.json").read_text() == "second"
    late.drop_model(JOB, "0-1-aaaaaaaa")
    assert (opened("four").fetch(JOB) / "config.json").read_text() == "second"


def test_a_model_whose_worker_died_before_it_was_chosen_is_found(opened: Open) -> None:
    add_model(opened("one"), "0-1-aaaaaaaa", "only")
    assert (opened("two").fetch(JOB) / "config.json").read_text() == "only"


def test_a_job_without_a_model_is_an_error_of_the_job(opened: Open) -> None:
    with pytest.raises(ModelError, match="holds no model of that job") as caught:
        opened("one").fetch(JOB)
    assert caught.value.code == "model_not_found"
    assert opened("one").models() == []


def test_an_export_is_a_copy_and_overwrites_nothing(opened: Open, tmp_path: Path) -> None:
    store = opened("one")
    add_model(store, "0-1-aaaaaaaa", "mine")
    store.choose(JOB, "0-1-aaaaaaaa")
    opened("two").export(JOB, tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_text() == "mine"
    with pytest.raises(UsageError, match="exists"):
        store.export(JOB, tmp_path / "out")


def test_another_machine_goes_on_from_the_last_whole_checkpoint(opened: Open) -> None:
    store = opened("one")
    for step in (10, 20):
        checkpoint = add_checkpoint(store, "0-1-aaaaaaaa", step)
        seal(checkpoint)
        store.keep_checkpoint(JOB, "0-1-aaaaaaaa", checkpoint)
    add_checkpoint(store, "0-1-aaaaaaaa", 30)  # its worker died while writing
    found = latest_whole(opened("two").earlier_work(JOB))
    assert found is not None and steps_of(found) == 20


def test_choosing_a_model_clears_the_checkpoints_away(opened: Open) -> None:
    store = opened("one")
    checkpoint = add_checkpoint(store, "0-1-aaaaaaaa", 10)
    seal(checkpoint)
    store.keep_checkpoint(JOB, "0-1-aaaaaaaa", checkpoint)
    add_model(store, "0-1-aaaaaaaa", "done")
    store.choose(JOB, "0-1-aaaaaaaa")
    assert latest_whole(opened("two").earlier_work(JOB)) is None


def test_a_truncated_checkpoint_is_passed_over(tmp_path: Path) -> None:
    store = ModelsStore(tmp_path)
    checkpoint = add_checkpoint(store, "a", 10)
    assert not is_whole(checkpoint)
    seal(checkpoint)
    assert is_whole(checkpoint)
    (checkpoint / "model.safetensors").write_bytes(b"wei")
    assert not is_whole(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    assert not is_whole(checkpoint)


@pytest.mark.parametrize("name", ["job:", "job:xyz", "job:0123456789AB", "job:../../etc", "job:0123456789ab/.."])
def test_only_a_jobs_id_names_a_model(name: str) -> None:
    with pytest.raises(UsageError, match="names no job"):
        job_of(name)


def test_where_the_store_is(tmp_path: Path) -> None:
    home = {"HUGQUEUE_HOME": str(tmp_path)}
    assert store_address(load_settings(home)) == str(tmp_path / "models")
    assert store_address(load_settings(home | {"REDIS_URL": "redis://x"})) is None
    assert store_address(load_settings(home | {"HUGQUEUE_MODELS_URL": "s3://a/b"})) == "s3://a/b"
    with pytest.raises(UsageError, match="HUGQUEUE_MODELS_URL"):
        open_store(None, tmp_path)


def test_an_address_that_nothing_knows_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        open_store("nowhere://bucket/models", tmp_path)
