"""Base models of `embedding` and `rerank`: a `SentenceTransformer` or a `CrossEncoder`, ready to be trained.

They are loaded like at inference, from checked files; a plain encoder of transformers gets mean pooling, or a head of
one number.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.errors import ModelError
from common.training.options import TrainingOptions
from workers.inference.embedding.package_model import check_installed, open_model
from workers.inference.embedding.sentence_transformers_config import GENERAL
from workers.inference.loading.loader import ModelSource
from workers.models.file_references import read_json
from workers.training.trainer.base_model import add_lora, check_new_weights, head_of, set_padding

#: The class of models for each task.
_KINDS = {"embedding": "SentenceTransformer", "rerank": "CrossEncoder"}
#: Limits of tokenizers above this mean none.
_UNLIMITED = 10**9
#: Texts that are tokenized together to count their tokens.
_TEXTS = 1000


@dataclass(slots=True)
class Encoder:
    """A model to train."""

    model: Any  #: a `SentenceTransformer` or `CrossEncoder`
    adapted: Any = None  #: its transformer with LoRA adapters
    max_tokens: int | None = None  #: of a text
    _own_limit: Any = None
    _use_cache: bool | None = None

    def save(self, directory: Path) -> None:
        """Write the model as safetensors, LoRA adapters merged in, with the base model's own limit of tokens."""
        if self.adapted is not None:
            self.adapted.merge_and_unload()
        part = self.model.transformers_model
        if part is not None and self._use_cache is not None:
            part.config.use_cache = self._use_cache  # Trainer changes it for the training
        if self.model.max_seq_length != self._own_limit:
            self.model.max_seq_length = self._own_limit
        self.model.save_pretrained(str(directory), create_model_card=False)

    def count_longer(self, texts: Sequence[Any]) -> int:
        """Return how many texts, or pairs of texts, are longer than the model takes."""
        tokenizer = getattr(self.model, "tokenizer", None)
        if self.max_tokens is None or not callable(tokenizer):
            return 0
        longer = 0
        for start in range(0, len(texts), _TEXTS):
            columns = zip(*texts[start : start + _TEXTS], strict=True)
            found = tokenizer(*map(list, columns), padding=False, truncation=False, verbose=False)["input_ids"]
            longer += sum(len(ids) > self.max_tokens for ids in found)
        return longer


def load_encoder(task: str, source: ModelSource, options: TrainingOptions, note: Callable[[str], None]) -> Encoder:
    """Return the base model of a run, in float32.

    Args:
        task: `embedding` or `rerank`.
        source: the base model's directory, and how it may be loaded.
        options: LoRA, and the tokens of a text.
        note: called with a remark on a new head.

    Raises:
        WorkerError: `missing_library`, sentence-transformers is not installed.
        ModelError: the model cannot be loaded, is an adapter, or has no layers for LoRA.
    """
    check_installed(f"Fine-tuning for {task} needs sentence-transformers")
    if source.adapter:
        raise ModelError(
            "adapter_unsupported",
            f"The model to start from is an adapter, which {task} cannot be fine-tuned from. Merge it into its base "
            "(peft: merge_and_unload) and save that.",
        )
    _note_other_kind(task, source.directory, note)
    new: set[str] = set()
    if task == "rerank":
        model = _load_cross_encoder(source, new, note)
    else:
        model, _ = open_model(_KINDS[task], source, torch.float32)
    part = model.transformers_model
    own_limit = model.max_seq_length
    encoder = Encoder(
        model,
        adapted=_adapted(task, model, options, new) if options.lora else None,
        max_tokens=_limit(model, options),
        _own_limit=own_limit,
        _use_cache=getattr(part.config, "use_cache", None) if part is not None else None,
    )
    if options.max_length and encoder.max_tokens is not None:
        model.max_seq_length = encoder.max_tokens
    return encoder


def _note_other_kind(task: str, directory: Path, note: Callable[[str], None]) -> None:
    """Note that a model was saved as one of another kind, of which only the transformer is taken."""
    found = read_json(directory / GENERAL).get("model_type", "SentenceTransformer")
    if (directory / "modules.json").exists() and found != _KINDS[task]:
        parts = "a head of one number" if task == "rerank" else "mean pooling"
        note(f"The base model is a {found!s:.40}: its transformer is trained, with {parts}.")


def _load_cross_encoder(source: ModelSource, new: set[str], note: Callable[[str], None]) -> Any:
    """Return a model with a head of one number; add the weights that the base model lacks to `new`."""

    def check(part: Any, info: Mapping[str, Any], directory: Path) -> None:
        new.update(check_new_weights(part, info, directory, note))

    model, _ = open_model(
        "CrossEncoder",
        source,
        torch.float32,
        check,
        num_labels=1,
        model_kwargs={"ignore_mismatched_sizes": True},
    )
    if model.num_labels != 1:
        raise ModelError("not_a_model", f"{source.directory} gives {model.num_labels} scores for a pair; expected one.")
    part = model.transformers_model
    if part is not None and model.tokenizer is not None:
        set_padding(part, model.tokenizer)
    return model


def _limit(model: Any, options: TrainingOptions) -> int | None:
    own = model.max_seq_length
    known = own if isinstance(own, int) and own < _UNLIMITED else None
    return min(filter(None, (known, options.max_length)), default=None)


def _adapted(task: str, model: Any, options: TrainingOptions, new: set[str]) -> Any:
    """Return the transformer of a model with LoRA adapters, which it has in place."""
    part = model.transformers_model
    if part is None:
        raise ModelError("bad_param", "--lora adapts the linear layers of a transformer, and this model has none.")
    # An existing head is small: it is trained in full, like without LoRA. That of a language model is none of these.
    has_head = task == "rerank" and type(part).__name__.endswith("ForSequenceClassification")
    return add_lora(part, options, new | (head_of(part) if has_head else set()))
