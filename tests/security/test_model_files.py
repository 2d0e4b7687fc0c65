"""What a model's files refer to stays inside its directory, and is no code, unless the worker was started so."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForMaskedLM, OneFormerImageProcessor

from common.errors import ModelError
from common.records import Json
from common.training.labels import Labels
from common.training.options import TrainingOptions
from tests.support import tiny_media, tiny_models
from tests.support.pipeline_reference import run, runner_of
from workers.inference.loading.loader import ModelSource, load_config, load_model, load_processor, load_tokenizer
from workers.models.file_references import code_repositories
from workers.models.load_options import LoadOptions
from workers.models.resolver import ModelPolicy, resolve
from workers.training.trainer.base_model import load_base_model


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.masked_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def model(bert: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bert, tmp_path / "roots" / "model"))


def change(path: Path, **values: Json) -> None:
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(found | values))


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(ModelError) as caught:
        call()
    return caught.value.code


def load_code(model: Path, **rules: bool) -> str:
    return code_of(lambda: load_model(AutoModelForMaskedLM, ModelSource(model, LoadOptions(**rules)), "cpu"))


def shard(model: Path, name: str) -> None:
    """Have an index of safetensors name that file."""
    weights = dict.fromkeys(load_file(model / "model.safetensors"), name)
    change(model / "model.safetensors.index.json", metadata={}, weight_map=weights)
    (model / "model.safetensors").rename(model / "dummy.safetensors")


@pytest.mark.parametrize(
    "shard_path", ["../../secret/w.safetensors", "{secret}/w.safetensors", "sub/../../../secret/w.safetensors"]
)
def test_an_index_of_shards_does_not_lead_out(model: Path, tmp_path: Path, shard_path: str):
    secret = tmp_path / "secret"
    secret.mkdir()
    shutil.copy(model / "model.safetensors", secret / "w.safetensors")
    shard(model, shard_path.format(secret=secret))
    assert load_code(model) == "model_not_allowed"
    assert load_code(model, allow_pickle=True) == "model_not_allowed"


def test_an_index_beside_it_is_followed(model: Path):
    shard(model, "dummy.safetensors")
    load_model(AutoModelForMaskedLM, ModelSource(model), "cpu")


def test_an_index_of_safetensors_names_no_pickle(model: Path):
    torch.save(load_file(model / "model.safetensors"), model / "x.bin")
    shard(model, "x.bin")
    assert load_code(model) == "unsafe_weights"
    load_model(AutoModelForMaskedLM, ModelSource(model, LoadOptions(allow_pickle=True)), "cpu")


def test_weights_are_beside_their_configuration(model: Path):
    (model / "sub").mkdir()
    (model / "sub" / "x.safetensors.index.json").write_text('{"metadata": {}, "weight_map": {"a": "/x.bin"}}')
    for name in ("sub/x.safetensors.index.json", "../x.safetensors", "/x.safetensors"):
        change(model / "config.json", transformers_weights=name)
        assert load_code(model) == "model_not_allowed"


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize(
    "value", ["owner/kernels", "paged|owner/kernels:run", {"": "sdpa", "text": "owner/kernels@main"}]
)
def test_a_configuration_names_no_kernels(model: Path, name: str, value: Json):
    change(model / "config.json", **{name: value})
    assert load_code(model) == "custom_code"
    change(model / "config.json", **{name: "eager"}, text_config={name: value})
    assert load_code(model) == "custom_code"


def test_an_implementation_of_transformers_own_is_taken(model: Path):
    change(model / "config.json", attn_implementation="eager")
    assert load_model(AutoModelForMaskedLM, ModelSource(model), "cpu").config._attn_implementation == "eager"


def test_a_backbone_is_not_taken_from_another_repository(model: Path):
    change(model / "config.json", backbone="owner/other")
    assert load_code(model) == "model_not_allowed"


def test_a_tokenizer_opens_only_what_is_beside_it(model: Path, tmp_path: Path):
    secret = tmp_path / "vocab.txt"
    secret.write_text("\n".join(tiny_models.VOCABULARY))
    (model / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    elsewhere = {"vocab_file": str(secret), "tokenizer_file": str(tmp_path / "tokenizer.json")}
    for kind in ("BertTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend", "XLNetTokenizer"):
        change(model / "tokenizer_config.json", tokenizer_class=kind, **elsewhere)
        assert code_of(lambda: load_tokenizer(ModelSource(model))) == "no_tokenizer"
    (tmp_path / "tokenizer.json").rename(model / "tokenizer.json")
    change(model / "tokenizer_config.json", tokenizer_class="BertTokenizer")
    assert load_tokenizer(ModelSource(model)).tokenize("the cat") == ["the", "cat"]


@pytest.mark.parametrize(
    "settings",
    [
        {"fast_tokenizer_files": ["/etc/tokenizer.1.0.json"]},
        {"fast_tokenizer_files": ["../tokenizer.1.0.json"]},
        {"sp_model_kwargs": {"model_file": "/etc/passwd"}},
        {"mecab_kwargs": {"mecab_option": "-d /etc"}},
    ],
)
def test_a_tokenizer_names_no_path_outside_the_model(model: Path, settings: dict[str, Json]):
    change(model / "tokenizer_config.json", **settings)
    assert code_of(lambda: load_tokenizer(ModelSource(model))) == "model_not_allowed"


def test_an_image_processor_reads_only_what_is_beside_it(model: Path, tmp_path: Path):
    (tmp_path / "classes.json").write_text('{"0": {"name": "cat", "isthing": 1}}')
    shutil.copy(tmp_path / "classes.json", model / "names.json")
    OneFormerImageProcessor(repo_path=str(model), class_info_file="names.json").save_pretrained(model)
    for repository, name in (
        (str(tmp_path), "classes.json"),
        (None, str(tmp_path / "classes.json")),
        ("a/b", "x.json"),
    ):
        change(model / "preprocessor_config.json", repo_path=repository, class_info_file=name)
        assert (
            code_of(lambda: load_processor(AutoImageProcessor, ModelSource(model), "image processor"))
            == "model_not_allowed"
        )
    change(model / "preprocessor_config.json", repo_path="owner/other", class_info_file="names.json")
    assert load_processor(AutoImageProcessor, ModelSource(model), "image processor").metadata["class_names"] == ["cat"]


def test_a_link_out_of_the_roots_is_found_at_any_depth(model: Path, tmp_path: Path):
    policy = ModelPolicy(roots=(str(model.parent),))
    resolve(str(model), None, "fill-mask", policy)
    (tmp_path / "secret").touch()
    deep = model.parent / "other" / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (deep / "w.safetensors").symlink_to(tmp_path / "secret")
    (model / "inside").symlink_to(model.parent / "other")
    (model / "round").symlink_to(model)
    assert code_of(lambda: resolve(str(model), None, "fill-mask", policy)) == "model_not_allowed"
    (deep / "w.safetensors").unlink()
    resolve(str(model), None, "fill-mask", policy)


MINE = {"AutoConfig": "mine.Config", "AutoModelForMaskedLM": "mine.Model"}


def test_a_model_with_custom_code_is_not_a_stock_architecture(model: Path):
    (before,) = run("fill-mask", model, ["the [MASK]"])
    change(model / "config.json", auto_map=MINE)
    assert code_of(lambda: runner_of("fill-mask", model)) == "custom_code"
    assert code_of(lambda: runner_of("embedding", model)) == "custom_code"
    (after,) = runner_of("fill-mask", model, ignore_auto_map=True).run(
        ["the [MASK]"], {}, tiny_models.RecordingMonitor()
    )
    assert after == before
    assert code_of(lambda: runner_of("fill-mask", model, ignore_auto_map="yes")) == "bad_param"


@pytest.mark.parametrize("values", [{"id2label": 5}, {"dtype": "float99"}, {"auto_map": 5}])
def test_a_configuration_of_another_shape_is_not_a_model(model: Path, values: dict[str, Json]):
    change(model / "config.json", **values)
    assert code_of(lambda: load_config(ModelSource(model))) == "not_a_model"


def test_a_head_with_custom_code_is_not_trained_as_the_stock_one(model: Path):
    change(model / "config.json", auto_map={"AutoModelForMaskedLM": "mine.Model"})
    arguments = (Labels(""), TrainingOptions("fill-mask"), print)
    assert code_of(lambda: load_base_model("AutoModelForMaskedLM", ModelSource(model), *arguments)) == "custom_code"


def test_code_for_another_head_says_nothing_of_this_one(model: Path):
    change(model / "config.json", auto_map={"AutoModelForCausalLM": "mine.Model"})
    load_model(AutoModelForMaskedLM, ModelSource(model), "cpu")


@pytest.mark.parametrize("value", [["mine.Slow", None], {"AutoTokenizer": ["mine.Slow", "mine.Fast"]}])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
def test_a_tokenizer_with_custom_code_is_refused(model: Path, file: str, value: Json):
    change(model / file, auto_map=value)
    assert code_of(lambda: load_tokenizer(ModelSource(model))) == "custom_code"
    load_tokenizer(ModelSource(model, LoadOptions(ignore_auto_map=True)))


@pytest.mark.parametrize("name", ["AutoImageProcessor", "AutoFeatureExtractor"])
@pytest.mark.parametrize("file", ["preprocessor_config.json", "config.json"])
def test_an_image_processor_with_custom_code_is_refused(tmp_path: Path, file: str, name: str):
    model = tiny_media.vit(tmp_path / "vit")
    change(model / file, auto_map={name: "mine.Processor"})
    assert code_of(lambda: runner_of("image-classification", model)) == "custom_code"
    runner_of("image-classification", model, ignore_auto_map=True)


def test_ignored_code_is_not_run_where_code_is_allowed(model: Path, tmp_path: Path):
    change(model / "config.json", auto_map=MINE)
    (model / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    load_model(
        AutoModelForMaskedLM, ModelSource(model, LoadOptions(allow_remote_code=True, ignore_auto_map=True)), "cpu"
    )
    assert not (tmp_path / "ran").exists()
    load_code(model, allow_remote_code=True)
    assert (tmp_path / "ran").exists()


def test_code_of_another_repository_obeys_the_list_of_models(model: Path):
    change(model / "config.json", auto_map={"AutoConfig": "other/code--mine.Config"})
    policy = ModelPolicy(roots=(str(model.parent),), patterns=("good/*",), load=LoadOptions(allow_remote_code=True))
    assert code_repositories(model) == {"other/code"}
    assert code_of(lambda: resolve(str(model), None, "fill-mask", policy)) == "model_not_allowed"
    for more in ({"patterns": ("good/*", "other/*")}, {"patterns": ()}, {"load": LoadOptions()}):
        resolve(str(model), None, "fill-mask", replace(policy, **more))
