"""Continuous batches give what greedy `generate` gives, report how texts ended, and can be cancelled."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from common.errors import Cancelled
from common.jobs import JobSpec
from tests.support import tiny_models
from tests.support.pipeline_reference import runner_of
from tests.support.tiny_models import TEXTS, RecordingMonitor, mixed
from workers.inference.generation.continuous_batching import ContinuousBatcher, try_continuous_batching
from workers.inference.tasks.openai_requests import wrap_openai_runner
from workers.inference.tasks.pipeline_runner import PipelineRunner

#: A cache for a CPU: by itself it takes most of the memory.
SMALL_CACHE = {"page_size": 32, "num_blocks": 64, "max_batch_tokens": 128, "use_cuda_graph": False}
GREEDY = {"do_sample": False, "max_new_tokens": 8, "usage": True}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.causal_gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def loaded(gpt2: Path) -> PipelineRunner:
    runner = runner_of("text-generation", gpt2)
    assert runner.task.batcher is None  # it is for GPUs
    assert try_continuous_batching(runner.task.pipe.model, **SMALL_CACHE) is not None
    return runner


@pytest.fixture
def runner(loaded: PipelineRunner) -> PipelineRunner:
    loaded.task.batcher = ContinuousBatcher(loaded.task.pipe.model, **SMALL_CACHE)
    return loaded


def with_ends(model: Path, runner: PipelineRunner) -> None:
    """Have the model end most of its texts early: its commonest token is made the one that ends."""
    network = AutoModelForCausalLM.from_pretrained(model)
    tokens = torch.cat(
        [network.generate(torch.tensor([[5 + n, 9]]), do_sample=False, max_new_tokens=8)[0, 2:] for n in range(9)]
    )
    runner.task.pipe.model.generation_config.eos_token_id = int(tokens.mode().values)


def test_texts_and_their_counts_are_those_of_static_batches(gpt2, runner):
    with_ends(gpt2, runner)
    records = [*TEXTS, *mixed(20, longest=40)]
    found = runner.run(records, GREEDY, RecordingMonitor())
    assert runner.task.batcher is not None
    runner.task.batcher = None
    expected = runner.run(records, GREEDY, RecordingMonitor())
    assert [one.output for one in found] == [one.output for one in expected]
    reasons = {text["finish_reason"] for one in found if one.output for text in one.output}
    assert reasons == {"stop", "length"}


def test_requests_are_answered_the_same(runner):
    spec = JobSpec("0" * 12, "text-generation", "m", format="openai")
    records = [{"prompts": ["the old cat", "a dog"], "options": {"do_sample": False, "max_new_tokens": 5}}]
    found = wrap_openai_runner(spec, runner, 100).run(records, {}, RecordingMonitor())
    runner.task.batcher = None
    expected = wrap_openai_runner(spec, runner, 100).run(records, {}, RecordingMonitor())
    assert found[0].failure is None
    assert found[0].output == expected[0].output


@pytest.mark.parametrize(
    "params",
    [{"num_beams": 2}, {"repetition_penalty": 1.5}, {"stop_sequence": ["cat"]}, {"do_sample": True, "seed": 5}],
)
def test_what_only_generate_can_do_is_left_to_it(runner, params):
    parsed_params = runner.task.parse_params({**GREEDY, **params})
    assert runner.task.budget(runner.budget, parsed_params) is runner.budget
    assert runner.task.budget(runner.budget, runner.task.parse_params(GREEDY)) is not runner.budget


def test_a_cancel_ends_the_loop_within_a_batch(runner):
    monitor = RecordingMonitor()
    monitor.tick = lambda: (_ for _ in ()).throw(Cancelled)
    with pytest.raises(Cancelled):
        runner.task.forward(
            [runner.task.prepare("a", runner.task.parse_params(GREEDY)).inputs[0]],
            runner.task.parse_params(GREEDY),
            monitor,
        )
    assert runner.run(["the old cat"], GREEDY, RecordingMonitor())[0].failure is None


def test_a_loop_that_fails_leaves_its_texts_to_static_batches(runner):
    runner.task.batcher._options["page_size"] = 0
    found = runner.run(["the old cat", "a dog"], GREEDY, RecordingMonitor())
    assert runner.task.batcher is None
    assert [one.failure for one in found] == [None, None]


def test_a_model_that_cannot_go_along_is_found_out_at_load(gpt2):
    network = AutoModelForCausalLM.from_pretrained(gpt2, attn_implementation="eager")
    network._get_logits_processor = None
    assert try_continuous_batching(network, **SMALL_CACHE) is None
