"""Packed rows on a GPU, in bfloat16 by the varlen kernel, give what padded rows give."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from common.records import Json, Outcome
from tests.support import tiny_models
from tests.support.tiny_models import SMALL, VOCABULARY, RecordingMonitor, mixed
from workers.inference.core.runner import Runner
from workers.inference.tasks.runners import find_runner
from workers.inference.text.packing import ATTENTION, PackingRunner
from workers.models.load_options import LoadOptions

#: MPNet adds a bias of its own to the scores, so it runs padded.
PACKED = {"Bert": True, "Roberta": True, "ModernBert": True, "DistilBert": True, "MPNet": False}
#: More numbers for the configurations.
SIZES: dict[str, dict[str, object]] = {
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "ModernBert": {"local_attention": 8, "global_attn_every_n_layers": 2},  # every second layer sees four to each side
}
#: In bfloat16, two layers of random weights.
LEAST_COSINE, LARGEST_DIFFERENCE = 0.998, 0.03


@pytest.fixture(scope="module", params=PACKED)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(architecture: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier, which is an encoder too."""
    directory = tmp_path_factory.mktemp(architecture)
    made = getattr(transformers, f"{architecture}ForSequenceClassification")
    if architecture == "Roberta":  # with its own tokenizer: positions are counted from behind that of the padding, 1
        tiny_models.masked_roberta(directory)
        config = transformers.RobertaConfig.from_pretrained(directory, num_labels=3)
    else:
        tiny_models.wordpiece(directory)
        sizes = {**SMALL, "vocab_size": len(VOCABULARY), "max_position_embeddings": 80, "pad_token_id": 0}
        sizes |= {"num_labels": 3, **SIZES.get(architecture, {})}
        config = getattr(transformers, f"{architecture}Config")(**sizes)
    torch.manual_seed(0)
    network = made(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.1)
    network.save_pretrained(directory)
    return directory


def loaded(task: str, model: Path, device: str, dtype: str) -> PackingRunner:
    runner = find_runner(task).load(task, model, device, LoadOptions(dtype=dtype))
    assert isinstance(runner, PackingRunner)
    if dtype == "bfloat16" and device == "cpu":  # where there is no kernel, and so no need
        runner.pack()
    return runner


def run(runner: Runner, records: Sequence[Json], **params: Json) -> list[Outcome]:
    found = runner.run(records, params, RecordingMonitor())
    assert [one.failure for one in found] == [None] * len(records)
    return found


def padded(runner: PackingRunner) -> PackingRunner:
    runner._packer, runner.budget.pads_to_longest = None, True
    return runner


def test_vectors_of_packed_rows_are_those_of_padded_ones(architecture, model, device):
    records = mixed(400)
    exact = np.stack([one.output for one in run(loaded("embedding", model, device, "float32"), records)])
    runner = loaded("embedding", model, device, "bfloat16")
    assert (runner.run_info()["attention"] == ATTENTION) is PACKED[architecture]
    found = np.stack([one.output for one in run(runner, records)])
    same = np.stack([one.output for one in run(padded(runner), records)])
    for expected in (exact, same):
        assert (found * expected).sum(axis=1).min() > LEAST_COSINE


def test_scores_of_packed_rows_are_those_of_padded_ones(architecture, model, device):
    records = mixed(400)

    def scores(runner: Runner) -> np.ndarray:
        outputs = [{item["label"]: item["score"] for item in one.output} for one in run(runner, records, top_k=3)]
        return np.array([[output[label] for label in sorted(output)] for output in outputs])

    exact = scores(loaded("text-classification", model, device, "float32"))
    runner = loaded("text-classification", model, device, "bfloat16")
    assert (runner.run_info()["attention"] == ATTENTION) is PACKED[architecture]
    found, same = scores(runner), scores(padded(runner))
    for expected in (exact, same):
        np.testing.assert_allclose(found, expected, atol=LARGEST_DIFFERENCE)
