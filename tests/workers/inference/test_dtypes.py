"""Numbers of another size: int8, float8, half precision give nearly the same, say what they are, are named right."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from common.errors import ModelError, UsageError
from common.jobs import JobSpec, new_job_id
from common.reporting import Reporter
from common.settings import load_settings
from tests.support import tiny_models
from tests.support.embeddings import minilm_directory
from tests.support.pipeline_reference import runner_of
from tests.support.tiny_models import TEXTS, RecordingMonitor, mixed
from workers.device.server.model_cache import ModelCache
from workers.inference.loading import dtypes, loader
from workers.inference.loading.cpu_layers import Int8Linear
from workers.inference.loading.dtypes import in_full_precision, resolve_dtype
from workers.inference.loading.float8_layers import Float8Linear, use_float8
from workers.inference.loading.loader import ModelSource, load_model
from workers.inference.text.packing import ATTENTION
from workers.models.load_options import LoadOptions
from workers.models.resolver import ModelPolicy


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.classifier(tmp_path_factory.mktemp("bert"))


def vectors(model: Path, texts: Sequence[str], **load_params: str) -> np.ndarray:
    outcomes = runner_of("embedding", model, **load_params).run(texts, {}, RecordingMonitor())
    return np.stack([outcome.output for outcome in outcomes])


def test_an_int8_layer_gives_what_the_layer_gives_within_a_hundredth():
    torch.manual_seed(0)
    layer, values = torch.nn.Linear(64, 48), torch.randn(5, 7, 64)
    values[0] *= 100  # a large row must not cost the others their digits
    for one in (layer, torch.nn.Linear(64, 48, bias=False)):
        bias = None if one.bias is None else one.bias.detach()
        found, expected = Int8Linear(one.weight.detach(), bias)(values), one(values)
        error = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
        assert error.max() < 0.02


@pytest.mark.parametrize(("dtype", "cosine"), [("int8", 0.98), ("bfloat16", 0.999)])
def test_vectors_of_lower_precision_point_the_same_way(bert, dtype, cosine):
    full, low = vectors(bert, TEXTS), vectors(bert, TEXTS, dtype=dtype)
    assert (full * low).sum(axis=1).min() >= cosine
    assert not np.array_equal(full, low)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_runner_says_what_it_runs_with(bert, dtype):
    assert runner_of("embedding", bert, dtype=dtype).run_info() == {"dtype": dtype, "attention": ATTENTION}
    assert runner_of("text-classification", bert, dtype=dtype).run_info()["dtype"] == dtype


@pytest.mark.parametrize(
    ("load_params", "computes_in"), [({}, "int8"), ({"dtype": "auto"}, "int8"), ({"dtype": "float32"}, "float32")]
)
def test_the_workers_dtype_is_that_of_jobs_that_name_none(bert, load_params, computes_in):
    models = ModelCache("cpu", ModelPolicy(any_path=True, load=LoadOptions(default_dtype="int8")))
    loaded, *_ = models.get(JobSpec(new_job_id(), "embedding", str(bert), params=load_params), Reporter())
    assert loaded.run_info()["dtype"] == computes_in


def test_a_model_without_the_workers_dtype_computes_in_float32(bert, monkeypatch):
    monkeypatch.setattr("workers.inference.loading.linear_layers._children", lambda *_: iter(()))
    runner = runner_of("text-classification", bert, default_dtype="int8")
    assert runner.run_info()["dtype"] == "float32"
    with pytest.raises(ModelError, match="no linear layers"):
        runner_of("text-classification", bert, dtype="int8")


def test_a_worker_is_started_with_a_dtype_that_there_is():
    assert load_settings({"HUGQUEUE_DTYPE": "int8"}).dtype == "int8"
    with pytest.raises(UsageError, match=r"HUGQUEUE_DTYPE: expected one of auto, .*found 'int4'"):
        load_settings({"HUGQUEUE_DTYPE": "int4"})


def test_int8_takes_less_memory(bert):
    full = runner_of("text-classification", bert)
    assert runner_of("text-classification", bert, dtype="int8").memory_bytes() < 0.6 * full.memory_bytes()


def test_int8_is_for_cpus():
    with pytest.raises(ModelError, match="on cuda:0"):
        resolve_dtype("int8", "cuda:0")


def test_the_models_rules_of_loading_hold_for_int8_too(bert):
    model = load_model(AutoModelForSequenceClassification, ModelSource(bert, LoadOptions(dtype="int8")), "cpu")
    assert not model.training


# float8 is for GPUs; what computes it runs on a CPU too, only slower. `tests/gpu` runs it on a GPU.


def test_a_float8_layer_gives_what_the_layer_gives_within_a_few_hundredths():
    torch.manual_seed(0)
    values = torch.randn(5, 7, 64, dtype=torch.bfloat16)
    values[0] *= 100  # a large row must not cost the others their digits
    for bias in (True, False):
        one = torch.nn.Linear(64, 48, bias=bias)
        made = Float8Linear(one.weight.detach().bfloat16(), one.bias.detach().bfloat16() if bias else None)
        found, expected = made(values), one(values.float())
        assert found.dtype == torch.bfloat16
        error = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
        assert 0.001 < error.max() < 0.06


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the CPU count as a device that multiplies float8 matrices."""
    monkeypatch.setattr(dtypes, "supports_float8", lambda _: True)
    monkeypatch.setattr(loader, "resolve_dtype", lambda *_, **__: torch.bfloat16)


def test_vectors_in_float8_point_the_same_way(bert, as_on_a_gpu):
    for model in (bert, minilm_directory()):
        full, runner = vectors(model, mixed(20)), runner_of("embedding", model, dtype="float8")
        low = np.stack([outcome.output for outcome in runner.run(mixed(20), {}, RecordingMonitor())])
        assert 0.99 <= (full * low).sum(axis=1).min() < 0.99999
        assert runner.run_info()["dtype"] == "float8"
        assert not runner.budget.equal_lengths


def test_a_model_in_float8_computes_in_full_precision_for_a_while(bert, as_on_a_gpu):
    model = load_model(AutoModelForSequenceClassification, ModelSource(bert, LoadOptions(dtype="float8")), "cpu")
    assert any(isinstance(module, Float8Linear) for module in model.modules())
    ids = torch.tensor([[5, 8, 13]])
    with torch.inference_mode():
        low = model(ids).logits
        with in_full_precision(model):
            assert model(ids).logits.dtype == torch.float32
        assert torch.equal(model(ids).logits, low)


def test_adapters_compute_in_their_own_dtype_beside_a_base_in_float8(bert):
    model = AutoModelForSequenceClassification.from_pretrained(bert, dtype=torch.bfloat16)
    settings = LoraConfig(r=16, target_modules=["query"], init_lora_weights=False)  # a rank that float8 would take
    adapted = get_peft_model(model, settings).get_base_model()
    assert use_float8(adapted)
    layer = adapted.bert.encoder.layer[0].attention.self.query
    assert isinstance(layer.base_layer, Float8Linear)
    assert [type(own["default"]) for own in (layer.lora_A, layer.lora_B)] == [torch.nn.Linear] * 2


@pytest.mark.parametrize("default", [True, False])
def test_float8_is_for_gpus_that_have_it(bert, monkeypatch, caplog, default):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    if not default:
        with pytest.raises(ModelError, match=r"8\.9 or later, found NVIDIA A100 with 8\.0"):
            resolve_dtype("float8", "cuda:0")
        with pytest.raises(ModelError, match="int8 on cpu, found 'float8'"):
            resolve_dtype("float8", "cpu")
        return
    assert resolve_dtype("float8", "cuda:0", insists=False) == torch.bfloat16
    model = AutoModelForSequenceClassification.from_pretrained(bert, dtype=torch.bfloat16)
    monkeypatch.setattr(model, "to", lambda _: model)
    assert dtypes.dtype_name(dtypes.to_device(model, "float8", "cuda:0", insists=False)) == "bfloat16"
    assert "NVIDIA A100" in caplog.text


def test_int8_vectors_of_a_real_model_point_the_same_way():
    model = minilm_directory()
    full, low = vectors(model, mixed(20)), vectors(model, mixed(20), dtype="int8")
    assert (full * low).sum(axis=1).min() >= 0.98
