"""A batch that does not fit into the GPU's memory is halved, and its records get what they get otherwise."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from tests.support import tiny_models
from tests.support.tiny_models import VOCABULARY, RecordingMonitor, mixed
from workers.inference.tasks.embedding import EmbeddingRunner

#: Bytes that batches may take beyond the model.
ROOM = 128 << 20


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An encoder of a token's 2,048 numbers in its widest layer."""
    tiny_models.wordpiece(tmp_path)
    sizes = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 2048}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=64, **sizes)).save_pretrained(tmp_path)
    return tmp_path


def test_a_batch_that_does_not_fit_is_halved(model, gpu):
    runner = EmbeddingRunner("embedding", model, gpu)
    records = mixed(4000)

    def vectors() -> np.ndarray:
        runner.budget.tokens = 1 << 20
        found = runner.run(records, {}, RecordingMonitor())
        assert not any(one.failure for one in found)
        return np.stack([one.output for one in found])

    expected = vectors()
    assert runner.budget.tokens == 1 << 20
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(gpu).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(gpu) + ROOM) / total, gpu)
    try:
        found = vectors()
        assert runner.budget.tokens < 1 << 17
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, gpu)
    assert (found * expected).sum(axis=1).min() > 0.999
