"""Which names a worker resolves, and which it refuses; nothing here asks the Hub."""

import json
import os
import resource
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from common.display_text import human_size
from common.errors import ModelError, WorkerError
from common.models.references import ModelRef
from common.settings import load_settings
from workers.models.load_options import LoadOptions
from workers.models.resolver import ModelPolicy, resolve


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    """A directory of models, one of them `good`."""
    _model(tmp_path / "roots" / "good")
    return tmp_path / "roots"


@pytest.fixture
def policy(roots: Path) -> ModelPolicy:
    return ModelPolicy(roots=(str(roots),))


def _model(directory: Path, weights: str = "model.safetensors") -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / weights).write_bytes(b"weights")
    return directory


def _refused(model: str, policy: ModelPolicy, revision: str | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        resolve(model, revision, "fill-mask", policy)
    return caught.value.code


def test_a_path_under_a_root_is_taken(roots: Path, policy: ModelPolicy):
    found = resolve(str(roots / "good"), None, "fill-mask", policy)
    assert (found.path, found.commit, found.source) == (roots / "good", None, "path")


def test_a_fault_of_files_that_may_pass_is_tried_again(roots: Path, policy: ModelPolicy):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(roots, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(WorkerError) as caught:
            resolve(str(roots / "good"), None, "fill-mask", policy)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.code == "model_unreadable" and "Too many open files" in caught.value.message


def test_circular_links_and_nul_bytes_are_not_a_directory(roots: Path, policy: ModelPolicy):
    (roots / "loop").symlink_to("loop")
    assert _refused(str(roots / "loop"), policy) == "model_not_found"
    assert _refused(f"{roots}/loop/below", policy) == "model_not_found"
    assert _refused(f"{roots}/a\0b", policy) == "model_not_found"


def test_without_roots_no_path_is_taken(roots: Path):
    assert _refused(str(roots / "good"), ModelPolicy()) == "model_not_allowed"


def test_a_path_outside_is_refused_alike_whether_it_exists_or_not(tmp_path: Path, policy: ModelPolicy):
    _model(tmp_path / "elsewhere")
    for name in ("elsewhere", "nothing"):
        with pytest.raises(ModelError) as caught:
            resolve(str(tmp_path / name), None, "fill-mask", policy)
        assert caught.value.message.replace(name, "").startswith(
            f"This worker does not open {tmp_path}/: a job may name a path under HUGQUEUE_MODEL_ROOTS "
            f"({policy.roots[0]})"
        )


def test_two_dots_are_refused_even_when_they_stay_inside(roots: Path, policy: ModelPolicy):
    assert _refused(f"{roots}/good/../good", policy) == "model_not_allowed"


def test_a_link_out_of_the_roots_is_refused(tmp_path: Path, roots: Path, policy: ModelPolicy):
    (roots / "link").symlink_to(_model(tmp_path / "elsewhere"))
    assert _refused(str(roots / "link"), policy) == "model_not_allowed"


def test_a_file_that_is_a_link_out_of_the_roots_is_refused(tmp_path: Path, roots: Path, policy: ModelPolicy):
    (tmp_path / "secret").write_text("x")
    (roots / "good" / "vocab.txt").symlink_to(tmp_path / "secret")
    assert _refused(str(roots / "good"), policy) == "model_not_allowed"


def test_a_link_inside_the_roots_is_followed(roots: Path, policy: ModelPolicy):
    (roots / "latest").symlink_to(roots / "good")
    assert resolve(str(roots / "latest"), None, "fill-mask", policy).path == roots / "good"


def test_a_preloaded_path_is_allowed_by_that(tmp_path: Path):
    model = _model(tmp_path / "mine")
    policy = ModelPolicy(preloaded=(str(model),))
    assert resolve(str(model), None, "fill-mask", policy).path == model
    assert _refused(str(_model(tmp_path / "other")), policy) == "model_not_allowed"


def test_the_embedded_worker_reads_what_its_user_may(tmp_path: Path):
    model = _model(tmp_path / "mine")
    assert resolve(str(model), None, "fill-mask", ModelPolicy(any_path=True)).path == model


def test_a_directory_that_is_not_there_is_not_found(roots: Path, policy: ModelPolicy):
    assert _refused(str(roots / "nothing"), policy) == "model_not_found"


def test_a_hub_id_is_never_a_directory_of_the_working_directory(
    roots: Path, policy: ModelPolicy, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(roots.parent)
    assert (Path("roots") / "good").is_dir()
    assert _refused("roots/good", replace(policy, any_path=True)) == "model_offline"


@pytest.mark.parametrize("name", ["a..b", "..", "owner/..", "a b", "", "owner/model@main", "http:x", "모델"])
def test_what_is_neither_id_nor_path_is_refused(name: str):
    assert _refused(name, ModelPolicy()) in ("model_not_found", "model_not_allowed")


@pytest.mark.parametrize("revision", ["../x", "a/../b", "a b", "", "/etc"])
def test_a_revision_cannot_leave_the_cache(revision: str):
    assert _refused("owner/model", ModelPolicy(), revision) == "model_not_found"


def test_ids_are_restricted_by_pattern():
    policy = ModelPolicy(patterns=("google-bert/*", "owner/model"))
    assert _refused("other/model", policy) == "model_not_allowed"
    assert _refused("google-bert/tiny", policy) == "model_offline"  # allowed, but not in the cache
    assert _refused("other/model", replace(policy, preloaded=("other/model",))) == "model_offline"


def test_the_default_model_of_a_task_obeys_the_patterns_too():
    with pytest.raises(ModelError, match="distilbert/distilroberta-base"):
        resolve(None, None, "fill-mask", ModelPolicy(patterns=("google-bert/*",)))


def test_the_model_of_a_job_that_nobody_trained_is_not_found():
    assert _refused("job:0123456789ab", ModelPolicy()) == "model_not_found"


def test_pickle_weights_are_refused_unless_the_worker_allows_them(roots: Path, policy: ModelPolicy):
    model = str(_model(roots / "old", "pytorch_model.bin"))
    assert _refused(model, policy) == "unsafe_weights"
    assert resolve(model, None, "fill-mask", replace(policy, load=LoadOptions(allow_pickle=True))).path == Path(model)


def _adapter(directory: Path, base: str | None, kind: str = "LORA") -> str:
    _model(directory, "adapter_model.safetensors")
    config = {"peft_type": kind, "base_model_name_or_path": base}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return str(directory)


def test_the_base_of_an_adapter_is_checked_like_any_model(roots: Path, policy: ModelPolicy):
    base = _model(roots / "base", "model.safetensors")
    found = resolve(_adapter(roots / "one", str(base)), None, "fill-mask", policy)
    assert (found.model, found.path, found.adapter, found.base) == (
        str(roots / "one"), base, roots / "one", str(base)
    )  # fmt: skip
    assert _refused(_adapter(roots / "two", "/etc"), policy) == "model_not_allowed"
    assert _refused(_adapter(roots / "three", str(roots / "one")), policy) == "adapter_only"
    assert _refused(_adapter(roots / "four", None), policy) == "adapter_only"
    assert _refused(_adapter(roots / "five", "../base"), policy) == "model_not_found"
    assert _refused(_adapter(roots / "six", str(base), "XLORA"), policy) == "adapter_unsupported"
    pickled = _model(roots / "seven", "pytorch_model.bin")
    assert _refused(_adapter(roots / "eight", str(pickled)), policy) == "unsafe_weights"
    with pytest.raises(ModelError, match="nine is an adapter of owner/model: This worker does not serve owner/model"):
        resolve(
            _adapter(roots / "nine", "owner/model"), None, "fill-mask", replace(policy, patterns=("google-bert/*",))
        )


def test_a_policy_comes_from_the_settings_and_passes_to_the_device():
    settings = load_settings(
        {
            "HOME": "/home/x",
            "HUGQUEUE_MODEL_ROOTS": "/models:/more",
            "HUGQUEUE_ALLOWED_MODELS": "google-bert/*",
            "HUGQUEUE_PRELOAD": "fill-mask=owner/model,embedding",
        }
    )
    policy = ModelPolicy.of(settings)
    assert (policy.roots, policy.patterns) == (("/models", "/more"), ("google-bert/*",))
    assert policy.preloaded == ("owner/model",)
    assert not (policy.any_path or policy.load.allow_pickle or policy.load.allow_remote_code)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(policy), type=ModelPolicy) == policy


@pytest.mark.parametrize("name", ["/models/x", "./x", "../x", "~/x", "a/b/c", "."])
def test_paths_are_distinguished_from_ids(name: str):
    assert ModelRef.parse(name).kind == "path"


@pytest.mark.parametrize("name", ["bert-base-uncased", "google-bert/bert-base-uncased"])
def test_ids_are_distinguished_from_paths(name: str):
    assert ModelRef.parse(name).kind == "hub"


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (999, "999 bytes"), (440_473_133, "440 MB"), (13_476_000_000, "13.5 GB")]
)
def test_sizes_in_words(size: int, text: str):
    assert human_size(size) == text
