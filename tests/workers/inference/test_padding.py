"""A record's output does not depend on its neighbors, whatever the model makes of its padding."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import CanineTokenizer

from common.errors import ModelError
from tests.support.pipeline_reference import assert_neighbors_change_nothing, runner_of
from tests.support.tiny_architectures import tiny_config, tiny_model
from tests.support.tiny_models import WORDS, answering, causal_gpt2, masked_bert
from tests.support.tiny_seq2seq import make_bart
from workers.inference.core.token_budget import TokenBudget
from workers.inference.loading import cpu_layers as layers
from workers.inference.loading.batch_invariance import ensure_batch_invariance
from workers.inference.text.truncation import input_token_limit

_CHANCE = random.Random(5)
TEXTS = [" ".join(_CHANCE.choices(WORDS, k=words)) for words in (4, 5, 6, 9, 17, 30, 4, 40)]
RECORDS: dict[str, list[Any]] = {
    "question-answering": [{"question": "what is this ?", "context": text} for text in TEXTS],
}
PARAMS: dict[str, dict[str, Any]] = {
    "text-generation": {"max_new_tokens": 5, "do_sample": False},
}


def make(name: str, directory: Path) -> Path:
    model = getattr(transformers, name)
    return tiny_model(model.config_class, model, directory)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("question-answering", "MobileBertForQuestionAnswering"),
        ("question-answering", "FunnelForQuestionAnswering"),
        ("embedding", "FNetModel"),
        ("embedding", "ConvBertModel"),
        ("embedding", "CpmAntModel"),
        ("text-classification", "FunnelForSequenceClassification"),
        ("text-classification", "XLNetForSequenceClassification"),
        ("text-generation", "RwkvForCausalLM"),
        ("text-generation", "MiniMaxForCausalLM"),
        ("text-generation", "BartForCausalLM"),
        ("text-generation", "WhisperForCausalLM"),
    ],
)
def test_a_record_gets_the_same_output_in_a_batch_as_alone(tmp_path, task, name):
    runner = runner_of(task, make(name, tmp_path))
    outcomes = assert_neighbors_change_nothing(runner, RECORDS.get(task, TEXTS), **PARAMS.get(task, {}))
    assert [outcome.failure for outcome in outcomes] == [None] * len(TEXTS)


def test_models_whose_tokenizer_is_written_in_python_are_tried_too(tmp_path):
    make("CanineForSequenceClassification", tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    CanineTokenizer(model_max_length=128).save_pretrained(tmp_path)
    runner = runner_of("text-classification", tmp_path)
    assert not runner._tokenizer.is_fast  # type: ignore[attr-defined]
    assert_neighbors_change_nothing(runner, ["a long text of many letters " * 4, "one short text", "another"])


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("task", ["fill-mask", "embedding", "text-generation", "summarization", "question-answering"])
def test_the_rounding_of_lower_precision_is_not_mistaken_for_padding(tmp_path, task, dtype):
    made = {
        "text-generation": causal_gpt2,
        "summarization": make_bart,
        "question-answering": answering,
    }
    runner = runner_of(task, made.get(task, masked_bert)(tmp_path), dtype=dtype)
    assert runner.budget is not None
    assert (runner.budget.equal_lengths, runner.budget.items > 1) == (False, True)


def budget_after(run: Any, lengths: tuple[int, ...] = (4, 9)) -> TokenBudget:
    budget = TokenBudget.of("cpu")
    rows = [{"input_ids": list(range(1, length + 1))} for length in lengths]
    ensure_batch_invariance(budget, torch.nn.Linear(1, 1), lambda: rows, run)
    return budget


def sums(rows: Any, bias: Any) -> list[list[torch.Tensor]]:
    return [[torch.tensor([float(sum(row["input_ids"])) + bias(rows)])] for row in rows]


def test_a_model_that_sees_no_neighbor_is_batched_freely():
    budget = budget_after(lambda rows: sums(rows, lambda _: 0))
    assert (budget.equal_lengths, budget.items > 1) == (False, True)


def test_a_model_that_sees_its_padding_gets_equal_lengths():
    budget = budget_after(lambda rows: sums(rows, lambda rows: max(len(row["input_ids"]) for row in rows)))
    assert (budget.equal_lengths, budget.items > 1) == (True, True)


def test_a_model_that_sees_equal_neighbors_gets_one_at_a_time():
    assert budget_after(lambda rows: sums(rows, len)).items == 1


def test_a_trial_that_raises_leaves_one_at_a_time():
    def run(rows: Any) -> Any:
        raise AssertionError("this is not for two")

    assert budget_after(run).items == 1


@pytest.mark.parametrize("sees", [False, True])
def test_an_effect_of_padding_in_low_precision_is_verified_in_float32(sees: bool):
    model, budget = torch.nn.Linear(1, 1, dtype=torch.bfloat16), TokenBudget.of("cpu")
    weight = model.weight.data

    def run(rows: Any) -> Any:
        rounded = model.weight.dtype != torch.float32
        return sums(rows, lambda rows: 100 * max(len(row["input_ids"]) for row in rows) * (rounded or sees))

    ensure_batch_invariance(budget, model, lambda: [{"input_ids": list(range(length))} for length in (4, 9)], run)
    assert (budget.equal_lengths, budget.items > 1) == (sees, True)
    assert model.weight.data.data_ptr() == weight.data_ptr() and model.weight.dtype == torch.bfloat16


def test_a_model_that_refuses_padding_gets_equal_lengths():
    def run(rows: Any) -> Any:
        assert len({len(row["input_ids"]) for row in rows}) == 1
        return sums(rows, lambda _: 0)

    assert budget_after(run).equal_lengths


def test_padding_is_tried_where_all_samples_are_cut_to_one_length():
    assert not budget_after(lambda rows: sums(rows, lambda _: 0), lengths=(8, 8)).equal_lengths


def test_memory_that_runs_out_in_a_trial_says_nothing_of_the_model():
    def run(rows: Any) -> Any:
        raise MemoryError

    with pytest.raises(MemoryError):
        budget_after(run)


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have oneDNN win its race, as it does on some processors."""
    monkeypatch.setattr(layers, "onednn_is_faster", lambda _: True)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("question-answering", "LongformerForQuestionAnswering"),  # asserts separators that its dummy inputs lack
        ("embedding", "IBertModel"),  # its positions are no nn.Embedding
    ],
)
def test_models_that_take_no_trial_of_other_layers_load(tmp_path, onednn, task, name):
    runner_of(task, make(name, tmp_path))


def test_a_trial_of_other_layers_that_raises_leaves_all_as_they_were(tmp_path, onednn):
    def swapped() -> bool:
        return any(isinstance(module, layers.OneDnnLinear) for module in model.modules())

    def refuse(*_: Any) -> None:
        assert not swapped()

    model = transformers.AutoModelForMaskedLM.from_pretrained(masked_bert(tmp_path))
    hook = model.register_forward_pre_hook(refuse)
    layers.use_onednn_linear(model)
    assert not swapped()
    hook.remove()
    layers.use_onednn_linear(model)
    assert swapped()


def test_a_model_that_wants_more_than_a_text_says_so(tmp_path):
    with pytest.raises(ModelError, match="MarianModel returns no hidden states") as caught:
        runner_of("embedding", make("MarianModel", tmp_path))
    assert caught.value.code == "model_load_failed"


@pytest.mark.parametrize(
    ("name", "positions"), [("WhisperForCausalLM", 128), ("IBertModel", 127), ("XLNetModel", None)]
)
def test_a_models_positions_are_found_whatever_they_are_called(name, positions):
    model = getattr(transformers, name)
    with torch.device("meta"):
        assert input_token_limit(model(tiny_config(model.config_class)), tokenizer=None) == positions


def test_canine_makes_vectors(tmp_path):
    make("CanineModel", tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    CanineTokenizer(model_max_length=128).save_pretrained(tmp_path)
    texts = ["a long text of many letters", "one short text", "yet another"]
    assert_neighbors_change_nothing(runner_of("embedding", tmp_path), texts)


SILENT = "\u200b\ufeff"  # what the tokenizers of these models drop


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("embedding", "BertModel"),
        ("feature-extraction", "BertModel"),
        ("text-classification", "BertForSequenceClassification"),
        ("text-generation", "LlamaForCausalLM"),
        ("summarization", "BartForConditionalGeneration"),
        ("token-classification", "BertForTokenClassification"),
    ],
)
def test_a_text_without_tokens_is_empty_in_a_batch_and_alone(tmp_path, task, name):
    model = getattr(transformers, name)
    tiny_model(model.config_class, model, tmp_path)
    made = json.loads((tmp_path / "tokenizer.json").read_text())
    made["post_processor"] = None
    made["normalizer"] = {"type": "Replace", "pattern": {"Regex": "[\u200b\ufeff]"}, "content": ""}
    (tmp_path / "tokenizer.json").write_text(json.dumps(made))
    runner = runner_of(task, tmp_path)
    outcomes = assert_neighbors_change_nothing(runner, [*TEXTS, SILENT], **PARAMS.get(task, {}))
    assert [outcome.failure and outcome.failure.code for outcome in outcomes] == [*[None] * len(TEXTS), "empty_text"]
