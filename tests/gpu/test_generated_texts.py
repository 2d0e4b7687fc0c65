"""Continuous batches on a GPU, over transformers' paged cache, give the texts that `generate` gives."""

from pathlib import Path

import pytest

from tests.support import tiny_models
from tests.support.tiny_models import TEXTS, RecordingMonitor, mixed
from workers.inference.generation.continuous_batching import ContinuousBatcher
from workers.inference.loading import decode_attention
from workers.inference.tasks.pipeline_runner import PipelineRunner
from workers.models.load_options import LoadOptions

GREEDY = {"do_sample": False, "max_new_tokens": 24, "usage": True}
#: A cache for a CPU, which takes most of the memory otherwise.
SMALL_CACHE = {"page_size": 32, "num_blocks": 64, "max_batch_tokens": 128, "use_cuda_graph": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.causal_gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.mark.parametrize(("dtype", "equal"), [("float32", 1.0), ("bfloat16", 0.8)])
def test_texts_of_continuous_batches_are_those_of_generate(model, device, dtype, equal, monkeypatch):
    runner = PipelineRunner("text-generation", model, device, LoadOptions(dtype=dtype))
    if device == "cpu":
        runner.task.batcher = ContinuousBatcher(runner.task.pipe.model, **SMALL_CACHE)
        # As on a GPU, `generate` attends by torch's kernel: that for CPUs rounds elsewhere.
        monkeypatch.setattr(decode_attention, "_is_faster", lambda _: False)
    assert type(runner.task.batcher) is ContinuousBatcher
    records = [*TEXTS, *mixed(100, longest=40)]
    found = runner.run(records, GREEDY, RecordingMonitor())
    assert type(runner.task.batcher) is ContinuousBatcher  # it did not fall back
    runner.task.batcher = None
    expected = runner.run(records, GREEDY, RecordingMonitor())
    assert not any(one.failure for one in found)
    same = sum(one.output == other.output for one, other in zip(found, expected, strict=True))
    assert same >= equal * len(records)
