"""Adapters: outputs are those of peft's own models, whatever the layers; several of one base hold it once."""

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertModel,
    pipeline,
)

from common.errors import ModelError
from common.jobs import JobSpec, new_job_id
from common.reporting import Reporter
from tests.support import tiny_models
from tests.support.tiny_adapters import save_adapter
from tests.support.tiny_chats import chat_model
from tests.support.tiny_models import RecordingMonitor
from workers.device.server.model_cache import ModelCache
from workers.inference.loading import cpu_layers
from workers.models.resolver import ModelPolicy

PROMPTS = ["Where is Emil", "a dog and", "the river of Seoul"]
GREEDY = {"do_sample": False, "max_new_tokens": 8, "return_full_text": False}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def base(roots: Path) -> Path:
    return chat_model(roots / "base")


@pytest.fixture
def cache(roots: Path) -> ModelCache:
    return ModelCache("cpu", ModelPolicy(roots=(str(roots),)))


@pytest.fixture(params=[False, True], ids=["plain", "oneDNN"])
def layers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the model has layers by oneDNN, whether or not these are faster here."""
    monkeypatch.setattr(cpu_layers, "onednn_is_faster", lambda _: request.param)
    return bool(request.param)


def load(cache: ModelCache, model: Path, task: str = "text-generation", **params: Any) -> Any:
    loaded, _, _ = cache.get(JobSpec(new_job_id(), task, str(model), params=params), Reporter())
    return loaded


def outputs(runner: Any, inputs: list[Any], **params: Any) -> list[Any]:
    found = runner.run(inputs, params, RecordingMonitor())
    assert all(outcome.failure is None for outcome in found), found
    return [outcome.output for outcome in found]


def peft_texts(base: Path, adapter: Path) -> list[Any]:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    pipe = pipeline("text-generation", model=model, tokenizer=AutoTokenizer.from_pretrained(base))
    return [pipe(prompt, **GREEDY) for prompt in PROMPTS]


def tensors(loaded: Any) -> dict[str, torch.Tensor]:
    model = loaded.runner._model
    return dict(model.named_parameters()) | dict(model.named_buffers())


def test_texts_of_adapters_are_pefts_and_they_share_the_base(
    roots: Path, base: Path, cache: ModelCache, layers: bool
) -> None:
    names = ("one", "two")
    adapters = [save_adapter(base, roots / f"{name}-{layers}", seed=seed) for seed, name in enumerate(names)]
    loaded = [load(cache, adapter) for adapter in adapters]
    found = [outputs(one.runner, PROMPTS, **GREEDY) for one in loaded]
    assert found == [peft_texts(base, adapter) for adapter in adapters]
    assert found[0] != found[1]
    assert outputs(load(cache, base).runner, PROMPTS, **GREEDY) not in found
    assert [outputs(one.runner, PROMPTS, **GREEDY) for one in loaded] == found  # neither changed the other
    one, two = map(tensors, loaded)
    assert one.keys() == two.keys()
    own = {name for name in one if "lora_" in name}
    assert own and {name for name in one if one[name] is not two[name]} == own
    assert any(tensor.is_mkldnn for tensor in one.values()) == layers
    info = loaded[0].run_info()
    assert (info["model"], info["base_model"]) == (str(adapters[0]), str(base))


def test_a_base_is_freed_with_the_last_of_its_adapters(roots: Path, base: Path, cache: ModelCache) -> None:
    from workers.inference.loading import adapters

    load(cache, save_adapter(base, roots / "freed"))
    assert adapters._known
    cache._evict()
    gc.collect()
    assert not adapters._known


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (LoraConfig, {"use_dora": True, "target_modules": ["q_proj", "v_proj"]}),
        (LoraConfig, {"bias": "all", "modules_to_save": ["lm_head"], "target_modules": ["up_proj"]}),
        (IA3Config, {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    ],
    ids=["DoRA", "head", "IA3"],
)
def test_other_kinds_of_adapters_give_what_peft_gives(
    roots: Path, base: Path, cache: ModelCache, kind: Any, options: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    adapter = save_adapter(base, roots / request.node.callspec.id, kind=kind, **options)
    assert outputs(load(cache, adapter).runner, PROMPTS, **GREEDY) == peft_texts(base, adapter)


def test_a_head_that_only_the_adapter_has_is_its_own(roots: Path, cache: ModelCache) -> None:
    base = roots / "bert"  # no head
    tiny_models.wordpiece(base)
    BertModel(tiny_models.bert_config()).save_pretrained(base)
    adapter = save_adapter(
        base, roots / "reviews", auto_class=AutoModelForSequenceClassification, model={"num_labels": 3},
        target_modules=["query", "value"], task_type="SEQ_CLS",
    )  # fmt: skip
    texts = ["the old cat likes the bird", "a small dog"]
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    model = PeftModel.from_pretrained(model, adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    with torch.inference_mode():
        expected = [model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0].tolist() for text in texts]
    found = outputs(load(cache, adapter, "text-classification").runner, texts, top_k=None)
    for output, scores in zip(found, expected, strict=True):
        by_label = {one["label"]: one["score"] for one in output}
        assert [by_label[f"LABEL_{number}"] for number in range(3)] == pytest.approx(scores, abs=1e-5)


def test_an_adapters_own_tokenizer_is_used(roots: Path, base: Path, cache: ModelCache) -> None:
    adapter = save_adapter(base, roots / "spoken")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(adapter)
    found = outputs(load(cache, adapter).runner, [{"messages": [{"role": "user", "content": PROMPTS[0]}]}], **GREEDY)
    assert len(found) == 1 and found[0][0]["generated_text"]


def refusal(cache: ModelCache, model: Path, task: str = "text-generation", **params: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load(cache, model, task, **params)
    return caught.value


def with_config(adapter: Path, **values: Any) -> Path:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return adapter


def test_adapters_that_cannot_be_loaded_are_refused(roots: Path, base: Path, cache: ModelCache, tmp_path: Path) -> None:
    outside = chat_model(tmp_path / "outside")
    error = refusal(cache, save_adapter(outside, roots / "of-outside"))
    assert error.code == "model_not_allowed"
    assert f"{roots}/of-outside is an adapter of {outside}: This worker does not open" in error.message
    adapter = save_adapter(base, roots / "wrong")
    assert (
        "int8 is not available for adapters" in refusal(cache, save_adapter(base, roots / "int8"), dtype="int8").message
    )
    nested = save_adapter(base, roots / "nested", named=str(adapter))
    assert refusal(cache, nested).code == "adapter_only"
    assert refusal(cache, with_config(adapter, base_model_name_or_path=None)).code == "adapter_only"
    assert refusal(cache, with_config(adapter, peft_type="XLORA")).code == "adapter_unsupported"
    with_config(adapter, peft_type="LORA", megatron_config={"megatron_core": "os"})
    assert refusal(cache, adapter).code == "adapter_unsupported"
    with_config(adapter, base_model_name_or_path=str(tiny_models.masked_bert(roots / "other")), megatron_config=None)
    assert refusal(cache, adapter, "fill-mask").code == "not_a_model"
    with_config(adapter, base_model_name_or_path=str(base), r=8)
    assert refusal(cache, adapter).code == "not_a_model"
    (adapter / "adapter_model.safetensors").rename(roots / "kept")
    again = ModelCache("cpu", ModelPolicy(roots=(str(roots),)))
    assert "without weights" in refusal(again, adapter).message
    (adapter / "adapter_model.bin").write_bytes(b"")
    assert refusal(again, adapter).code == "unsafe_weights"
