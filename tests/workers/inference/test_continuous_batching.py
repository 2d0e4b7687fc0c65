"""Continuous batches give what greedy `generate` gives, report how texts ended, and can be cancelled.

The loop for CPUs is what a runner uses here; that for GPUs runs on a CPU too, only slower.
"""

import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GenerationConfig,
    GPTNeoConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MptConfig,
    OPTConfig,
    PreTrainedConfig,
)

from common.errors import Cancelled
from tests.support import tiny_models
from tests.support.pipeline_reference import runner_of
from tests.support.tiny_models import TEXTS, RecordingMonitor, mixed
from workers.inference.generation import continuous_batching_cpu
from workers.inference.generation.continuous_batching import ContinuousBatcher, try_batcher
from workers.inference.generation.continuous_batching_cpu import CpuContinuousBatcher
from workers.inference.openai.batch_runner import OpenAIBatchRunner
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
    assert type(runner.task.batcher) is CpuContinuousBatcher
    assert try_batcher(for_gpus, runner.task.pipe.model) is not None
    return runner


def for_gpus(model) -> ContinuousBatcher:
    return ContinuousBatcher(model, **SMALL_CACHE)


def for_cpus(model) -> CpuContinuousBatcher:
    return CpuContinuousBatcher(model, rows=4)  # so that most prompts wait


@pytest.fixture(params=[for_gpus, for_cpus])
def runner(loaded: PipelineRunner, request: pytest.FixtureRequest) -> PipelineRunner:
    loaded.task.batcher = request.param(loaded.task.pipe.model)
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
    before = runner.budget.tokens_run
    found = runner.run(records, GREEDY, RecordingMonitor())
    assert runner.task.batcher is not None
    assert runner.budget.tokens_run > before
    runner.task.batcher = None
    expected = runner.run(records, GREEDY, RecordingMonitor())
    assert [one.output for one in found] == [one.output for one in expected]
    reasons = {text["finish_reason"] for one in found if one.output for text in one.output}
    assert reasons == {"stop", "length"}


def test_requests_are_answered_the_same(runner):
    requests = OpenAIBatchRunner(runner, "text-generation", lambda task: (runner, {}), 100)
    records = [{"prompts": ["the old cat", "a dog"], "options": {"do_sample": False, "max_new_tokens": 5}}]
    found = requests.run(records, {}, RecordingMonitor())
    runner.task.batcher = None
    expected = requests.run(records, {}, RecordingMonitor())
    assert found[0].failure is None
    assert found[0].output == expected[0].output


@pytest.mark.parametrize(
    "params",
    [
        {"num_beams": 2},
        {"repetition_penalty": 1.5},
        {"stop_sequence": ["cat"]},
        {"do_sample": True, "seed": 5},
        {"regex": "a+"},
    ],
)
def test_what_only_generate_can_do_is_left_to_it(runner, params):
    def budget(params):
        parsed = runner.task.parse_params(params)
        inputs = runner.task.prepare("the old cat", parsed).inputs[0]
        return runner.task.budget(runner.budget, runner.task.group(inputs, parsed))

    assert budget({**GREEDY, **params}) is runner.budget
    assert budget(GREEDY) is not runner.budget


def test_a_cancel_ends_the_loop_within_a_batch(runner):
    monitor = RecordingMonitor()
    monitor.tick = lambda: (_ for _ in ()).throw(Cancelled)
    with pytest.raises(Cancelled):
        runner.task.forward(
            [runner.task.prepare("a", runner.task.parse_params(GREEDY)).inputs[0]],
            runner.task.parse_params(GREEDY),
            monitor,
        )
    assert runner.task.batcher is not None
    assert runner.run(["the old cat"], GREEDY, RecordingMonitor())[0].failure is None


@pytest.mark.parametrize("records", [["the old cat", "a dog"], ["a dog"]])
def test_a_loop_that_fails_leaves_its_texts_to_static_batches(runner, records):
    on_cpu = type(runner.task.batcher) is CpuContinuousBatcher
    runner.task.batcher._options["logits_to_keep" if on_cpu else "page_size"] = "none"
    found = runner.run(records, GREEDY, RecordingMonitor())
    assert runner.task.batcher is None
    assert not any(one.failure for one in found)


def test_a_model_that_cannot_go_along_is_found_out_at_load(gpt2):
    network = AutoModelForCausalLM.from_pretrained(gpt2, attn_implementation="eager")
    network._get_logits_processor = None
    assert try_batcher(for_gpus, network) is None
    assert try_batcher(for_cpus, network) is None


class LastTokenReplaced(CpuContinuousBatcher):
    """Ends each text with another token: its twin, which is as likely but for rounding, or the one after it."""

    step = 0

    def generate(self, prompts, config, monitor):
        return [[*new[:-1], new[-1] + self.step] for new in super().generate(prompts, config, monitor)]


class Twin(LastTokenReplaced):
    step = 49


class Other(LastTokenReplaced):
    step = 1


@pytest.mark.parametrize(("kind", "taken"), [(Twin, True), (Other, False)])
def test_a_token_that_is_as_likely_is_no_difference(kind, taken):
    torch.manual_seed(1)
    network = AutoModelForCausalLM.from_config(LlamaConfig(**ROTARY)).eval()
    with torch.no_grad():
        network.lm_head.weight[49:98] = network.lm_head.weight[:49] * (1 - 2e-5)
        network.lm_head.weight[98] = 0
    assert (try_batcher(kind, network) is not None) is taken


SIZES = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
ROTARY = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2}
LOCAL = {"num_layers": 2, "attention_types": [[["local"], 2]], "window_size": 9, "max_position_embeddings": 99}
BY_LENGTH = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("config", "batches"),
    [
        (LlamaConfig(**ROTARY), True),
        (BloomConfig(**{**SIZES, "n_layer": 2, "n_head": 4}), True),  # positions by the mask alone
        (OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=200), True),
        # A window and distances in columns of the cache, padding included.
        (GPTNeoConfig(**SIZES, **LOCAL), True),
        (MptConfig(vocab_size=99, d_model=32, n_layers=2, n_heads=4), True),
        (MistralConfig(**ROTARY, sliding_window=6), False),  # its cache forgets
        (MambaConfig(**{**SIZES, "state_size": 8}), False),  # has no keys and values
    ],
    ids=lambda value: value.model_type if isinstance(value, PreTrainedConfig) else "",
)
@pytest.mark.parametrize("common", [0, 7])
def test_texts_that_join_and_leave_are_those_of_each_prompt_alone(config, batches, common, monkeypatch):
    monkeypatch.setattr(continuous_batching_cpu, "_SPARE_COLUMNS", 1)
    torch.manual_seed(1)
    network = AutoModelForCausalLM.from_config(config).eval()
    batcher = try_batcher(for_cpus, network)
    assert (batcher is not None) is batches
    if batcher is None:
        return
    chance = random.Random(2)
    prefix = [chance.randrange(3, 99) for _ in range(common)]
    prompts = [[*prefix, *(chance.randrange(3, 99) for _ in range(chance.randrange(1, 30)))] for _ in range(25)]
    widths: list[int] = []
    network.register_forward_pre_hook(lambda _, __, given: widths.append(given["input_ids"].shape[1]), with_kwargs=True)

    def alone(prompt: list[int], **options: object) -> list[int]:
        ids = torch.tensor([prompt])
        found = network.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, **options)
        return found[0, len(prompt) :].tolist()

    commonest = Counter(token for prompt in prompts for token in alone(prompt, max_new_tokens=12, eos_token_id=None))
    ends = [token for token, _ in commonest.most_common(3)]
    generation = GenerationConfig(max_new_tokens=12, eos_token_id=ends, do_sample=False)
    widths.clear()
    found = batcher.generate(prompts, generation, RecordingMonitor())
    assert (widths[0], max(widths)) == (common or max(map(len, prompts)), max(map(len, prompts)) - common)
    assert found == [alone(prompt, max_new_tokens=12, eos_token_id=ends) for prompt in prompts]
    assert len({len(text) for text in found}) > 1  # some ended early


@pytest.mark.parametrize(
    ("prompts", "computed"),
    [
        ([[*range(5, 45)]] * 5, [39, 1]),  # all but the last token
        ([[*range(5, 45)], *([*range(5, 45), number] for number in range(5))], [39, 2]),
        ([[*range(5, 45)], [*range(5, 45), 3]], [41]),  # saves too little
        ([[*range(5, 45)]], [40]),
    ],
)
def test_what_prompts_have_in_common_is_computed_once(prompts, computed):
    torch.manual_seed(1)
    assert prefilled(AutoModelForCausalLM.from_config(LlamaConfig(**ROTARY)), prompts) == computed


def test_a_model_that_rotates_by_length_computes_whole_prompts():
    torch.manual_seed(1)
    network = AutoModelForCausalLM.from_config(LlamaConfig(**ROTARY, rope_parameters=BY_LENGTH))
    assert prefilled(network, [[*range(5, 45)]] * 5) == [40]


def prefilled(network, prompts: list[list[int]]) -> list[int]:
    """The number of columns of each forward pass before the first token, which all texts end with."""
    batcher = CpuContinuousBatcher(network.eval())
    widths: list[int] = []
    network.register_forward_pre_hook(lambda _, __, given: widths.append(given["input_ids"].shape[1]), with_kwargs=True)
    monitor = RecordingMonitor()
    batcher.generate(prompts, GenerationConfig(max_new_tokens=1, eos_token_id=0, do_sample=False), monitor)
    assert monitor.ticks == len(widths)
    return widths
