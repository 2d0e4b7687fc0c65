"""The model registry, in a directory and at a URL: whole models, one that counts, checkpoints that travel."""

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from common.errors import ModelError, StorageError, UsageError
from common.models.checkpoints import is_complete, latest_complete, mark_complete, step_of
from common.models.references import ModelRef
from common.models.registry import ModelRegistry, open_registry, registry_url
from common.settings import load_settings
from tests.support.s3_server import S3Server

JOB = "0123456789ab"
Open = Callable[[str], ModelRegistry]


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with S3Server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environ.items():
            patch.setenv(name, value)
        S3FileSystem.clear_instance_cache()  # fsspec keeps one for each URL, whatever server is behind it
        yield server


@pytest.fixture
def remote(s3: S3Server) -> str:
    """A URL on an S3 server under which there is nothing yet."""
    return f"{s3.url}/{uuid.uuid4().hex}"


@pytest.fixture(params=["directory", "s3"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the same registry as one machine or another would: each has a cache of its own."""
    location = str(tmp_path / "models") if request.param == "directory" else request.getfixturevalue("remote")
    return lambda machine: open_registry(location, tmp_path / machine)


def add_model(registry: ModelRegistry, attempt: str, text: str) -> None:
    directory = registry.attempt_dir(JOB, attempt) / "model"
    directory.mkdir()
    (directory / "config.json").write_text(text)
    (directory / "model.json").write_text(json.dumps({"model": f"job:{JOB}", "text": text}))
    registry.add_model(JOB, attempt, directory)


def add_checkpoint(registry: ModelRegistry, attempt: str, step: int, best: int | None = None) -> Path:
    checkpoint = registry.attempt_dir(JOB, attempt) / f"checkpoint-{step}"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"weights" * 100)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"best_global_step": best}))
    return checkpoint


def upload_checkpoint(registry: ModelRegistry, attempt: str, step: int, best: int | None = None) -> None:
    """A checkpoint as training leaves it: whole, and known to other machines."""
    checkpoint = add_checkpoint(registry, attempt, step, best)
    mark_complete(checkpoint)
    registry.upload_checkpoint(JOB, attempt, checkpoint)


def names_in(s3: S3Server, remote: str) -> set[str]:
    """The checkpoints with a list of their files, as seen from outside."""
    return {path.split("/")[-2] for path in s3.files().find(remote) if path.endswith("whole.json")}


def steps_in(directories: list[Path]) -> set[int]:
    return {step_of(path) for directory in directories for path in directory.iterdir() if is_complete(path)}


def test_a_model_is_found_by_its_job_on_another_machine(opened: Open) -> None:
    registry = opened("one")
    add_model(registry, "0-1-aaaaaaaa", "first")
    registry.promote(JOB, "0-1-aaaaaaaa")
    other = opened("two")
    assert (other.fetch(JOB) / "config.json").read_text() == "first"
    assert [model.card["text"] for model in other.models()] == ["first"]


def test_the_chosen_attempt_counts_and_the_other_cannot_overwrite_it(opened: Open) -> None:
    registry = opened("one")
    add_model(registry, "0-2-bbbbbbbb", "second")
    registry.promote(JOB, "0-2-bbbbbbbb")
    late = opened("two")
    add_model(late, "0-1-aaaaaaaa", "first")
    assert (opened("three").fetch(JOB) / "config.json").read_text() == "second"
    late.delete_model(JOB, "0-1-aaaaaaaa")
    assert (opened("four").fetch(JOB) / "config.json").read_text() == "second"


def test_a_model_whose_worker_died_before_it_was_chosen_is_found(opened: Open) -> None:
    add_model(opened("one"), "0-1-aaaaaaaa", "only")
    assert (opened("two").fetch(JOB) / "config.json").read_text() == "only"


def test_a_job_without_a_model_is_an_error_of_the_job(opened: Open) -> None:
    with pytest.raises(ModelError, match="has no model of that job") as caught:
        opened("one").fetch(JOB)
    assert caught.value.code == "model_not_found"
    assert opened("one").models() == []


def test_an_export_is_a_copy_and_overwrites_nothing(opened: Open, tmp_path: Path) -> None:
    registry = opened("one")
    add_model(registry, "0-1-aaaaaaaa", "mine")
    registry.promote(JOB, "0-1-aaaaaaaa")
    opened("two").export(JOB, tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_text() == "mine"
    with pytest.raises(UsageError, match="exists"):
        registry.export(JOB, tmp_path / "out")


def test_another_machine_resumes_from_the_last_complete_checkpoint(opened: Open) -> None:
    registry = opened("one")
    for step in (10, 20):
        upload_checkpoint(registry, "0-1-aaaaaaaa", step)
    add_checkpoint(registry, "0-1-aaaaaaaa", 30)  # its worker died while writing
    found = latest_complete(opened("two").checkpoint_dirs(JOB))
    assert found is not None and step_of(found) == 20


def test_choosing_a_model_deletes_the_checkpoints(opened: Open) -> None:
    registry = opened("one")
    upload_checkpoint(registry, "0-1-aaaaaaaa", 10)
    add_model(registry, "0-1-aaaaaaaa", "done")
    registry.promote(JOB, "0-1-aaaaaaaa")
    assert latest_complete(opened("two").checkpoint_dirs(JOB)) is None


def test_elsewhere_only_the_newest_checkpoint_and_the_best_are_kept(remote: str, tmp_path: Path) -> None:
    registry = open_registry(remote, tmp_path / "one")
    for step, best in ((10, None), (20, 20), (30, 20), (40, 20)):
        upload_checkpoint(registry, "0-1-aaaaaaaa", step, best)
    assert steps_in(open_registry(remote, tmp_path / "two").checkpoint_dirs(JOB)) == {20, 40}
    second = open_registry(remote, tmp_path / "two")
    upload_checkpoint(second, "0-2-bbbbbbbb", 50, 50)
    assert steps_in(open_registry(remote, tmp_path / "three").checkpoint_dirs(JOB)) == {50}


def test_an_attempt_that_lost_its_lease_deletes_nothing_of_the_next(s3: S3Server, remote: str, tmp_path: Path) -> None:
    upload_checkpoint(open_registry(remote, tmp_path / "one"), "0-2-bbbbbbbb", 30)
    upload_checkpoint(open_registry(remote, tmp_path / "two"), "0-1-aaaaaaaa", 40)
    assert names_in(s3, remote) == {"checkpoint-30", "checkpoint-40"}
    upload_checkpoint(open_registry(remote, tmp_path / "one"), "0-2-bbbbbbbb", 50)
    assert names_in(s3, remote) == {"checkpoint-50"}


def test_only_the_remote_checkpoints_that_are_needed_are_downloaded(s3: S3Server, remote: str, tmp_path: Path) -> None:
    registry = open_registry(remote, tmp_path / "one")
    for attempt, step in (("0-1-aaaaaaaa", 20), ("0-3-cccccccc", 60), ("0-2-bbbbbbbb", 40)):
        upload_checkpoint(registry, attempt, step, 20)
    half = f"{remote}/{JOB}/work/0-3-cccccccc/checkpoint-70"  # its worker died while it was uploaded
    s3.files().pipe({f"{half}/model.safetensors": b"weights", f"{half}/whole.json": b'{"model.safetensors": 700}'})
    directories = open_registry(remote, tmp_path / "two").checkpoint_dirs(JOB)
    assert steps_in(directories) == {20, 60}
    assert {path.name for directory in directories for path in directory.iterdir()} == {
        "checkpoint-20",
        "checkpoint-60",
    }
    assert latest_complete(directories) == tmp_path / "two" / JOB / "work" / "0-3-cccccccc" / "checkpoint-60"


def test_what_another_machine_adds_is_seen_at_once(s3: S3Server, remote: str, tmp_path: Path) -> None:
    registry = open_registry(remote, tmp_path / "one")
    add_model(registry, "0-1-aaaaaaaa", "first")
    assert [model.job_id for model in registry.models()] == [JOB]
    other = "ba9876543210"
    s3.files().pipe_file(f"{remote}/{other}/0-1-bbbbbbbb/model.json", b"{}")
    assert [model.job_id for model in registry.models()] == [JOB, other]


def test_of_several_whole_models_the_latest_attempt_counts(opened: Open) -> None:
    registry = opened("one")
    for attempt in ("2-1-worker", "10-1-worker", "9-3-worker"):
        add_model(registry, attempt, attempt)
    found = registry.find(JOB)
    assert found is not None and found.attempt == "10-1-worker"
    assert (opened("two").fetch(JOB) / "config.json").read_text() == "10-1-worker"


def test_an_unavailable_store_is_reported_as_such(s3: S3Server, remote: str, tmp_path: Path) -> None:
    registry = open_registry("s3://no-such-bucket/models", tmp_path / "one")
    checkpoint = add_checkpoint(registry, "0-1-aaaaaaaa", 10)
    s3.stop()
    try:
        for use in (
            registry.models,
            lambda: registry.find(JOB),
            lambda: registry.upload_checkpoint(JOB, "0-1-a", checkpoint),
        ):
            with pytest.raises(StorageError, match="The model registry s3://no-such-bucket/models cannot be used"):
                use()
    finally:
        s3.start()


def test_a_truncated_checkpoint_is_passed_over(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path)
    checkpoint = add_checkpoint(registry, "a", 10)
    assert not is_complete(checkpoint)
    mark_complete(checkpoint)
    assert is_complete(checkpoint)
    (checkpoint / "model.safetensors").write_bytes(b"wei")
    assert not is_complete(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    assert not is_complete(checkpoint)


def test_a_checkpoint_that_is_saved_again_stays_complete(tmp_path: Path) -> None:
    checkpoint = add_checkpoint(ModelRegistry(tmp_path), "a", 10)
    for state in ("{}", '{"best_global_step": 10}'):
        (checkpoint / "trainer_state.json").write_text(state)
        mark_complete(checkpoint)
    assert is_complete(checkpoint)


@pytest.mark.parametrize("name", ["job:", "job:xyz", "job:0123456789AB", "job:../../etc", "job:0123456789ab/.."])
def test_only_a_jobs_id_names_a_model(name: str) -> None:
    with pytest.raises(UsageError, match="names no job"):
        ModelRef.parse(name)


def test_where_the_store_is(tmp_path: Path) -> None:
    home = {"HUGQUEUE_HOME": str(tmp_path)}
    assert registry_url(load_settings(home)) == str(tmp_path / "models")
    assert registry_url(load_settings(home | {"REDIS_URL": "redis://x"})) is None
    assert registry_url(load_settings(home | {"HUGQUEUE_MODELS_URL": "s3://a/b"})) == "s3://a/b"
    with pytest.raises(UsageError, match="HUGQUEUE_MODELS_URL"):
        open_registry(None, tmp_path)


def test_an_address_that_nothing_knows_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        open_registry("nowhere://bucket/models", tmp_path)
