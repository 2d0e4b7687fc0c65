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


def minilm(task: str, *, tiny: bool) -> Path:
    """Return MiniLM."""
    return bert_base(task, tiny=True) if tiny else models.minilm()


#: By name: what makes one for a task. The model that generates is small enough for a CPU.
MODELS: dict[str, Callable[..., Path]] = {
    "bert-base": bert_base,
    "minilm": minilm,
    "small-causal": lambda _task, **_tiny: models.small_causal(),
}
