"""Models of the run on a GPU: those of the other benchmarks, and tiny ones with which a CPU tests the script."""

from collections.abc import Callable
from pathlib import Path

from benchmarks import models

_TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}


def bert_base(task: str, *, tiny: bool) -> Path:
    """Return a BERT with the head for a task; `embedding` takes the encoder of the masked language model."""
    if not tiny:
        return models.bert_classifier() if task == "text-classification" else models.bert_mlm()
    from transformers import BertForMaskedLM, BertForSequenceClassification

    if task == "text-classification":
        made = lambda: BertForSequenceClassification(models.bert_config(num_labels=3, **_TINY))  # noqa: E731
        return models.made("tiny-classifier", made)
    return models.made("tiny-mlm", lambda: BertForMaskedLM(models.bert_config(**_TINY)))


def _same(make: Callable[[], Path]) -> Callable[..., Path]:
    return lambda _task, **_tiny: make()


#: By name: what makes one for a task. MiniLM and the model that generates are small enough for a CPU.
MODELS: dict[str, Callable[..., Path]] = {
    "bert-base": bert_base,
    "minilm": _same(models.minilm),
    "small-causal": _same(models.small_causal),
}
