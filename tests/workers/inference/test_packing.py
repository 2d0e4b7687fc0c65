"""Packed rows give what padded ones give, with attention computed sequence by sequence, or are not used."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from common.records import Json
from tests.support import tiny_models
from tests.support.pipeline_reference import assert_same
from tests.support.tiny_models import SMALL, VOCABULARY, RecordingMonitor, mixed
from workers.inference.core.async_copy import PendingResult
from workers.inference.core.fallbacks import fallback_counts
from workers.inference.tasks import embedding, pipeline_runner, question_answering
from workers.inference.tasks.embedding import EmbeddingRunner
from workers.inference.tasks.pipeline_runner import PipelineRunner
from workers.inference.tasks.question_answering import QuestionAnsweringRunner
from workers.inference.text.packing import ATTENTION, VarlenPacker

HEADS = {
    "fill-mask": "ForMaskedLM",
    "text-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "zero-shot-classification": "ForSequenceClassification",
    "feature-extraction": "Model",
}
ANSWERS = {"question-answering": "ForQuestionAnswering"}
SIZES: dict[str, dict[str, object]] = {
    "Bert": {},
    "Roberta": {},
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "Electra": {"embedding_size": 16},
    "ModernBert": {"local_attention": 8, "global_attn_every_n_layers": 2},  # every second layer sees four to each side
    "GPT2": {"pad_token_id": len(VOCABULARY) - 1},
    "Bloom": {},
    "FNet": {},  # has no attention: it mixes everything in a row
    "DebertaV2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},  # brings its own
}
PACKABLE = ("Bert", "Roberta", "DistilBert", "Electra")


@pytest.fixture(autouse=True)
def padded_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have runners begin with padded rows, to compare with."""
    for module in (embedding, pipeline_runner, question_answering):
        monkeypatch.setattr(module, "packs_faster", lambda _: False)


def made(directory: Path, architecture: str, task: str) -> Path:
    labels = 2 if task in ANSWERS else 3
    if architecture == "Roberta":  # with its own tokenizer: positions are counted from behind that of the padding, 1
        tiny_models.masked_roberta(directory)
        config = transformers.RobertaConfig.from_pretrained(directory, num_labels=labels)
    else:
        tiny_models.wordpiece(directory)
        config = _config(architecture, labels)
    torch.manual_seed(0)
    model = getattr(transformers, f"{architecture}{(HEADS | ANSWERS)[task]}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    model.save_pretrained(directory)
    return directory


def _config(architecture: str, labels: int) -> transformers.PreTrainedConfig:
    sizes = {
        **SMALL,
        "vocab_size": len(VOCABULARY),
        "max_position_embeddings": 80,
        "pad_token_id": 0,
        "num_labels": labels,
    }
    return getattr(transformers, f"{architecture}Config")(**{**sizes, **SIZES[architecture]})


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        *itertools.product(PACKABLE, HEADS),
        *(("ModernBert", task) for task in ("fill-mask", "text-classification", "token-classification")),
    ],
)
def test_packed_rows_give_what_padded_ones_give(tmp_path, architecture, task):
    runner = PipelineRunner(task, made(tmp_path, architecture, task), "cpu")
    assert runner.encoder
    mask = "[MASK]" if task == "fill-mask" else None
    records: list[Json] = [*mixed(2000 if architecture == "Bert" else 120, mask), f"the {mask} of {mask} and a", ""]
    params: dict[str, Json] = {"candidate_labels": ["news", "서울"]} if task.startswith("zero") else {}
    assert runner.run_info()["attention"] == "sdpa"
    expected = runner.run(records, params, RecordingMonitor())
    assert runner.pack()
    assert runner.run_info()["attention"] == ATTENTION
    found = runner.run(records, params, RecordingMonitor())
    for one, other in zip(found, expected, strict=True):
        assert (one.failure, one.truncated) == (other.failure, other.truncated)
        assert_same(one.output, other.output)


@pytest.mark.parametrize("pooling", ["mean", "cls+lasttoken"])
@pytest.mark.parametrize("architecture", [*PACKABLE, "ModernBert"])
def test_vectors_of_packed_rows_are_those_of_padded_ones(tmp_path, architecture, pooling):
    runner = EmbeddingRunner("embedding", made(tmp_path, architecture, "feature-extraction"), "cpu")
    records: list[Json] = list(mixed(2000 if architecture == "Bert" else 120))
    expected = runner.run(records, {"pooling": pooling}, RecordingMonitor())
    assert runner.pack()
    assert runner.run_info()["attention"] == ATTENTION
    found = runner.run(records, {"pooling": pooling}, RecordingMonitor())
    np.testing.assert_allclose([one.output for one in found], [one.output for one in expected], atol=1e-4)


@pytest.mark.parametrize("architecture", ["FNet", "DebertaV2"])
def test_a_model_that_cannot_be_packed_runs_padded(tmp_path, architecture):
    runner = PipelineRunner("ner", made(tmp_path, architecture, "token-classification"), "cpu")
    assert not runner.pack()
    assert runner.run_info()["attention"] != ATTENTION


@pytest.mark.parametrize(
    ("architecture", "task"), [("GPT2", "text-classification"), ("GPT2", "embedding"), ("Bloom", "text-classification")]
)
def test_a_decoder_is_not_even_tried_as_an_index_out_of_range_is_the_end_of_a_gpu_process(tmp_path, architecture, task):
    model = made(tmp_path, architecture, "text-classification")
    runner = EmbeddingRunner(task, model, "cpu") if task == "embedding" else PipelineRunner(task, model, "cpu")
    before = fallback_counts()
    assert not runner.pack()
    assert fallback_counts() == before


def test_positions_behind_the_last_are_refused_before_the_model_sees_them(tmp_path):
    runner = EmbeddingRunner("embedding", made(tmp_path, "Bert", "fill-mask"), "cpu")
    packer = VarlenPacker(runner._model, "cpu", position=71, first_tokens=False)
    with pytest.raises(IndexError, match="10 tokens from position 71 of 80"), packer.packed([_row(10)]):
        pass
    with packer.packed([_row(9)]) as inputs:
        assert int(inputs["position_ids"].max()) == 79


def _row(tokens: int) -> dict[str, np.ndarray]:
    return {"input_ids": np.arange(tokens)}


@pytest.mark.parametrize("architecture", ["Bert", "Roberta", "DistilBert"])
def test_answers_of_packed_rows_are_those_of_padded_ones(tmp_path, architecture):
    runner = QuestionAnsweringRunner("question-answering", made(tmp_path, architecture, "question-answering"), "cpu")
    records: list[Json] = [{"question": "where is the cat", "context": text} for text in mixed(40)]
    expected = runner.run(records, {"top_k": 3}, RecordingMonitor())
    assert runner.pack()
    assert runner.run_info()["attention"] == ATTENTION
    found = runner.run(records, {"top_k": 3}, RecordingMonitor())
    for one, other in zip(found, expected, strict=True):
        assert_same(one.output, other.output)


@pytest.mark.parametrize("task", HEADS)
def test_results_that_are_read_a_batch_later_are_the_same(tmp_path, monkeypatch, task):
    runner = PipelineRunner(task, made(tmp_path, "Bert", task), "cpu")
    records: list[Json] = list(mixed(60, "[MASK]" if task == "fill-mask" else None))
    if task == "fill-mask":
        records[1::7] = [{"text": text, "targets": ["cat", "dog"]} for text in records[1::7]]
    params: dict[str, Json] = {"candidate_labels": ["news", "서울"]} if task.startswith("zero") else {}
    runner.budget.tokens = 128
    expected = runner.run(records, params, RecordingMonitor())
    late: list[int] = []

    def as_a_gpu(tensors: Sequence[torch.Tensor], finish: Callable[..., Sequence[object]]) -> PendingResult[object]:
        late.append(len(tensors))
        return PendingResult(lambda: finish(tensors))

    monkeypatch.setattr("workers.inference.tasks.encoder_tasks.copy_to_host_async", as_a_gpu)
    found = runner.run(records, params, RecordingMonitor())
    assert len(late) > 1
    for one, other in zip(found, expected, strict=True):
        assert_same(one.output, other.output)


def test_padded_batches_attend_as_before_after_a_packed_one(tmp_path):
    runner = PipelineRunner("ner", made(tmp_path, "Bert", "token-classification"), "cpu")
    runner.pack()
    runner.run(["the cat", "a dog and a cat"], {}, RecordingMonitor())
    assert runner._model.config._attn_implementation == "sdpa"
