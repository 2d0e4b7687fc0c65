"""Which runner serves a task, and which directories are models."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    BertForTokenClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
)

from common.errors import ModelError
from common.json_codec import to_json
from common.tasks import ALIASES, TASKS
from tests.support import tiny_models, tiny_seq2seq
from tests.support.pipeline_reference import assert_same, run, runner_of
from tests.support.tiny_models import RecordingMonitor
from workers.inference.core.runner import Runner
from workers.inference.loading.dtypes import resolve_dtype
from workers.inference.loading.loader import ModelSource, load_model, load_tokenizer, memory_bytes
from workers.inference.tasks.runners import RUNNERS, find_runner
from workers.models.load_options import LoadOptions


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.masked_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def copy(bert: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bert, tmp_path / "copy"))


def test_every_task_of_the_producer_has_a_runner():
    assert set(RUNNERS) == set(TASKS)
    for task in (*TASKS, *ALIASES, "translation_en_to_de"):
        assert issubclass(find_runner(task), Runner)


def test_an_unknown_task_says_how_runners_are_brought():
    with pytest.raises(ModelError, match=r"hugqueue\.runners") as caught:
        find_runner("fortune-telling")
    assert caught.value.code == "unknown_task"


def install(directory: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    information = directory / "fortunes-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: fortunes\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[hugqueue.runners]\nfortune-telling = {value}\n")
    (directory / "fortunes.py").write_text(
        "from workers.inference.core.runner import Runner\n\n\nclass Fortunes(Runner):\n    needs_model = False\n"
    )
    monkeypatch.syspath_prepend(directory)


def test_another_distribution_brings_a_runner_by_an_entry_point(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "fortunes:Fortunes")
    assert find_runner("fortune-telling").__name__ == "Fortunes"


def test_an_entry_point_that_is_not_a_runner_is_refused(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "json:dumps")
    with pytest.raises(ModelError, match="json:dumps") as caught:
        find_runner("fortune-telling")
    assert caught.value.code == "bad_runner"


def code_of(directory: Path, auto_class: type = AutoModelForMaskedLM) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(auto_class, ModelSource(directory), "cpu")
    return caught.value.code


def test_a_missing_directory_is_not_a_model(tmp_path):
    assert code_of(tmp_path / "nowhere") == "model_not_found"


def test_a_directory_without_a_configuration_is_not_a_model(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    assert code_of(tmp_path) == "not_a_model"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_damaged_files_are_not_a_model(copy, name):
    (copy / name).write_bytes(b"\x00 not what it was")
    assert code_of(copy) == "not_a_model"


def test_git_lfs_pointers_are_recognized(copy):
    (copy / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 440\n")
    with pytest.raises(ModelError, match="git lfs pull") as caught:
        load_model(AutoModelForMaskedLM, ModelSource(copy), "cpu")
    assert caught.value.code == "not_a_model"


def test_a_configuration_without_weights_is_not_a_model(copy):
    (copy / "model.safetensors").unlink()
    assert code_of(copy) == "not_a_model"


def test_pickled_weights_are_refused_with_the_way_out(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors") as caught:
        load_model(AutoModelForMaskedLM, ModelSource(copy), "cpu")
    assert caught.value.code == "unsafe_weights"


PICKLED = [
    ("fill-mask", tiny_models.masked_bert, "the [MASK] sleeps"),
    ("embedding", tiny_models.masked_bert, "the cat sleeps"),
    ("question-answering", tiny_models.answering, {"question": "who sleeps?", "context": "the cat sleeps"}),
    ("summarization", tiny_seq2seq.make_bart, "the cat sleeps"),
]


@pytest.mark.parametrize(("task", "make", "record"), PICKLED, ids=[task for task, _, _ in PICKLED])
def test_pickled_weights_are_opened_only_where_the_worker_allows_it(tmp_path, task, make, record):
    model = make(tmp_path / "model")
    (expected,) = run(task, model, [record])
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"pytorch_model\.bin"):
        runner_of(task, model)
    (found,) = runner_of(task, model, allow_pickle=True).run([record], {}, RecordingMonitor())
    assert found.failure is None
    assert_same(*(json.loads(to_json(outcome.output)) for outcome in (found, expected)))


def test_a_job_cannot_allow_what_its_worker_does_not(bert):
    with pytest.raises(ModelError, match="no parameter 'allow_pickle'"):
        run("fill-mask", bert, ["the [MASK]"], allow_pickle=True)


def test_an_adapter_is_refused_whatever_base_it_names(copy):
    (copy / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/else"}))
    assert code_of(copy) == "adapter_only"


def test_code_that_comes_with_a_model_is_never_run(copy, tmp_path):
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForMaskedLM": "evil.Model"}
    config["model_type"] = "evil"
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    assert code_of(copy) == "custom_code"
    assert not (tmp_path / "ran").exists()


def test_a_missing_head_fails_and_names_what_is_missing(bert):
    with pytest.raises(ModelError, match=r"classifier\.") as caught:
        runner_of("token-classification", bert)
    assert caught.value.code == "missing_weights"
    assert "BertForMaskedLM" in caught.value.message


def test_an_architecture_without_the_head_fails(tmp_path):
    with pytest.raises(ModelError, match="MaskedLM") as caught:
        runner_of("fill-mask", tiny_models.causal_gpt2(tmp_path))
    assert caught.value.code == "missing_weights"


def test_tied_weights_are_not_missing(bert):
    model = load_model(AutoModelForMaskedLM, ModelSource(bert), "cpu")
    assert model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_a_missing_pooler_can_be_done_without_where_the_task_says_so(bert):
    assert code_of(bert, AutoModel) == "missing_weights"
    load_model(AutoModel, ModelSource(bert), "cpu", ignore_missing=[r"(^|\.)pooler\."])


def test_missing_statistics_of_a_normalization_are_missing_weights(tmp_path):
    config = MobileNetV2Config(
        image_size=32, depth_multiplier=0.1, last_hidden_size=32, num_labels=3, tie_word_embeddings=False
    )
    MobileNetV2ForImageClassification(config).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.endswith("running_mean")}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    assert code_of(tmp_path, AutoModelForImageClassification) == "missing_weights"


def test_a_model_without_its_tokenizer_is_refused(copy):
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (copy / name).unlink(missing_ok=True)
    with pytest.raises(ModelError) as caught:
        load_tokenizer(ModelSource(copy))
    assert caught.value.code == "no_tokenizer"


def test_a_tokenizer_without_a_mask_cannot_fill_masks(copy):
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config["mask_token"] = None
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="mask_token") as caught:
        runner_of("fill-mask", copy)
    assert caught.value.code == "no_mask_token"


def test_half_precision_halves_the_memory(bert):
    full = load_model(AutoModelForMaskedLM, ModelSource(bert), "cpu")
    half = load_model(AutoModelForMaskedLM, ModelSource(bert, LoadOptions(dtype="bfloat16")), "cpu")
    assert {parameter.dtype for parameter in full.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert memory_bytes(half) < 0.6 * memory_bytes(full)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ModelError, match="bfloat16") as caught:
        resolve_dtype("float4", "cpu")
    assert caught.value.code == "bad_param"


def test_loading_and_running_say_nothing_on_their_own(bert, capfd):
    model = BertForTokenClassification.from_pretrained(bert)  # talks about its new head
    capfd.readouterr()
    assert model is not None
    run("fill-mask", bert, ["the [MASK] " + "cat " * 200])
    assert capfd.readouterr() == ("", "")
