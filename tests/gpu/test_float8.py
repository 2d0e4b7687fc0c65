"""Linear layers in float8 on a GPU point where those in float32 do, and take half the memory of bfloat16."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from tests.support import tiny_models
from tests.support.tiny_models import VOCABULARY, RecordingMonitor, mixed
from workers.inference.loading.float8_layers import supports_float8
from workers.inference.tasks.embedding import EmbeddingRunner
from workers.models.load_options import LoadOptions


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny_models.wordpiece(tmp_path)
    sizes = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=64, **sizes)).save_pretrained(tmp_path)
    return tmp_path


def test_vectors_in_float8_point_the_same_way(model, gpu):
    if not supports_float8(gpu):
        pytest.skip("this GPU has no float8")
    runners = {
        name: EmbeddingRunner("embedding", model, gpu, LoadOptions(dtype=name))
        for name in ("float32", "bfloat16", "float8")
    }
    found = {}
    for name, runner in runners.items():
        outcomes = runner.run(mixed(400), {}, RecordingMonitor())
        found[name] = np.stack([one.output for one in outcomes])
        assert runner.run_info()["dtype"] == name
        assert not runner.budget.equal_lengths
    assert 0.98 < (found["float8"] * found["float32"]).sum(axis=1).min() < 0.99999
    assert runners["float8"].memory_bytes() < 0.65 * runners["bfloat16"].memory_bytes()
