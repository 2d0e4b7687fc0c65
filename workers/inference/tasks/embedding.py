"""Embedding: one vector for each text, image or recording, or for each piece of a text.

A model saved by sentence-transformers is run as its configuration says: prompts, lower-casing, length, pooling,
further layers, normalization. Any other is run with the defaults of sentence-transformers, mean pooling (for a causal
model, the last token's state), and its vectors are scaled to length 1.

Vectors are float32 here, whatever the job's `precision`: `workers.celery_worker.vector_precision` converts them.
"""

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING, MODEL_MAPPING, AutoModel, ClapConfig

from common.errors import ModelError, first_line
from common.records import Json
from workers.inference.core.async_copy import PendingResult, copy_to_host_async
from workers.inference.core.device_errors import is_device_lost, is_out_of_memory
from workers.inference.core.samples import samples
from workers.inference.core.token_budget import TokenBudget
from workers.inference.embedding.chat_template import ChatTemplateEncoder
from workers.inference.embedding.pooling import Stages, pool
from workers.inference.embedding.sentence_transformers_config import (
    DenseConfig,
    SentenceTransformersConfig,
    UnsupportedConfig,
    read_sentence_transformers_config,
    unsupported,
)
from workers.inference.loading.batch_invariance import ensure_batch_invariance
from workers.inference.loading.loader import ModelSource, load_config, load_model, load_tokenizer
from workers.inference.tasks.static_embedding import StaticEmbeddingRunner
from workers.inference.tasks.vector_runner import VectorParams, VectorRunner
from workers.inference.text.packing import PROBE_TEXTS, PackingRunner, VarlenPacker, packs_faster, unpack
from workers.inference.text.tokenization import (
    TokenFeatures,
    TokenizedText,
    accepted_features,
    encode,
    lower_case,
    on_device,
    pad,
)
from workers.inference.text.truncation import configured_token_limit
from workers.models.load_options import DEFAULT_OPTIONS, LoadOptions


class EmbeddingRunner(PackingRunner, VectorRunner):
    """Turns texts into vectors by a transformer, pooling (`pooling`: a mode, or several joined by `+`) and layers."""

    @classmethod
    def load(cls, task: str, model: Path | None, device: str, options: LoadOptions = DEFAULT_OPTIONS) -> VectorRunner:
        """Return a runner of this class, one of static models, or one that uses the modules of sentence-transformers.

        Raises:
            CodedError: as `__init__`, and as `workers.inference.embedding.package_model.PackageModel`.
        """
        with suppress(UnsupportedConfig):
            return cls(task, model, device, options)
        with suppress(UnsupportedConfig):
            return StaticEmbeddingRunner(task, model, device, options)
        from workers.inference.tasks.module_runners import ModuleEmbeddingRunner

        return ModuleEmbeddingRunner(task, model, device, options)

    def __init__(self, task: str, model: Path | None, device: str, options: LoadOptions = DEFAULT_OPTIONS) -> None:
        """Load the model, its tokenizer and the layers after it.

        Raises:
            ModelError: as `load_model`; `unknown_module`, its configuration is not supported; `model_load_failed`, it
                returns no hidden states for a text.
        """
        source = ModelSource.of(task, model, options)
        directory = source.directory
        found = read_sentence_transformers_config(directory)
        self._task = task
        self._device = device
        self._configured = found is not None
        self._config = found or SentenceTransformersConfig(directory, ("mean",))
        source = source.inside(self._config.transformer)
        if found is None and _is_dual_encoder(load_config(source)):
            raise unsupported("it encodes texts and images, or sound, apart.")
        self._model = _load_encoder(source, device)
        if found is None and _is_causal(self._model.config):
            self._config = SentenceTransformersConfig(directory, ("lasttoken",))
        self._tokenizer = load_tokenizer(source)
        if self._config.lower_case:
            lower_case(self._tokenizer)
        self._messages = ChatTemplateEncoder(self._tokenizer, self._config.message) if self._config.message else None
        self._limit = configured_token_limit(self._config.max_tokens, self._model, self._tokenizer)
        self._prompts, self._truncate_dim = self._config.prompts, self._config.truncate_dim
        self._prompt_tokens = lru_cache(64)(self._count_prompt_tokens)
        self._stages = Stages(self._config.stages, device, allow_pickle=options.allow_pickle)
        self.budget = TokenBudget.of(device)
        self._tokenizer_lock = threading.Lock()  # a tokenizer cannot be reconfigured while another thread uses it
        ensure_batch_invariance(self.budget, self._model, self._trial_rows, self._trial)
        if packs_faster(self._model):
            self.pack()
        self._width = self._state_width()

    def _encode(self, texts: Sequence[str], prompt: str = "") -> list[TokenizedText]:
        with self._tokenizer_lock:
            if self._messages:
                return self._messages.encode(texts, prompt, self._limit)
            return encode(self._tokenizer, [prompt + text for text in texts], self._limit)

    def _words(self, texts: Sequence[str]) -> list[TokenizedText]:
        if not self._tokenizer.is_fast:
            raise _bad_param("split_tokens needs a tokenizer that knows the place of each token; this model has none.")
        with self._tokenizer_lock:
            return encode(self._tokenizer, texts, None, special=False)

    def _pooling(self, params: Mapping[str, Json]) -> tuple[str, ...]:
        return tuple(params["pooling"].split("+")) if "pooling" in params else self._config.pooling

    def _normalizes(self, params: Mapping[str, Json]) -> bool | None:
        found: bool | None = params.get("normalize", None if self._configured else True)
        return found

    def _vectors(self, rows: Sequence[TokenizedText], params: VectorParams) -> Sequence[Any] | PendingResult[Any]:
        hidden, mask = self._hidden_states(rows)
        vectors = pool(hidden, mask, params.pooling, self._prompt_tokens(params.prompt))
        vectors = self._stages(vectors, params.normalize, params.dimension)
        return copy_to_host_async([vectors], lambda host: list(host[0].numpy()))

    def _hidden_states(self, rows: Sequence[TokenizedText]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the last hidden states, of shape (texts, tokens, width), and their mask, of shape (texts, tokens)."""
        if self._packer is None:
            features = self._padded(rows)
            return self._hidden(features), features["attention_mask"]
        lengths = on_device(torch.tensor([[len(row)] for row in rows]), self._device)
        hidden = self._hidden_packed(rows, self._packer)
        return hidden, (torch.arange(hidden.shape[1], device=hidden.device) < lengths).long()

    def _padded(self, rows: Sequence[TokenizedText]) -> dict[str, torch.Tensor]:
        return pad([row.features for row in rows], self._tokenizer, self._device)

    def _state_width(self) -> int:
        try:
            return int(self._trial(self._trial_rows()[:1])[0][0].shape[-1])
        except Exception as error:  # any architecture may be loaded, and may require more than a text
            if is_out_of_memory(error) or is_device_lost(error):
                raise
            why = first_line(error).rstrip(".")
            raise ModelError(
                "model_load_failed",
                f"{type(self._model).__name__} returns no hidden states for a text alone: {why}. "
                "Use an encoder, or a decoder-only model.",
            ) from error

    def _trial_rows(self) -> list[TokenFeatures]:
        return [row.features for row in self._encode(cast("Sequence[str]", samples(self._task)))]

    def _trial(self, rows: Sequence[TokenFeatures]) -> list[list[torch.Tensor]]:
        hidden = self._hidden(pad(rows, self._tokenizer, self._device)).to(self._model.dtype)
        return [[state[: len(row["input_ids"])]] for state, row in zip(hidden, rows, strict=True)]

    def _hidden(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the last hidden states, of shape (texts, tokens, width)."""
        with torch.inference_mode():
            output: torch.Tensor = self._model(**accepted_features(features, self._model)).last_hidden_state
            return output.float()

    def pack(self) -> bool:
        """Pack batches into one row from now on, if the model's output stays the same; return whether it does."""
        rows = encode(self._tokenizer, PROBE_TEXTS, self._limit)

        def packed(packer: VarlenPacker) -> list[torch.Tensor]:
            found = self._hidden_packed(rows, packer)
            return [state[: len(row)] for state, row in zip(found, rows, strict=True)]

        return self._pack(packed, lambda: [self._trial([row.features])[0][0] for row in rows])

    def _hidden_packed(self, rows: Sequence[TokenizedText], packer: VarlenPacker) -> torch.Tensor:
        """Return what `_hidden` does, with the rows packed into one."""
        names = accepted_features(rows[0].features, self._model)
        features = [{name: row.features[name] for name in names} for row in rows]
        with torch.inference_mode(), packer.packed(features) as inputs:
            return unpack(self._model(**inputs).last_hidden_state.float(), [len(row) for row in rows])

    def _count_prompt_tokens(self, prompt: str) -> int:
        """Return how many tokens at the beginning of every text belong to the prompt and are not pooled."""
        if self._config.include_prompt or not prompt or self._messages:  # all tokens of a chat are pooled
            return 0
        ids = self._encode([prompt])[0].features["input_ids"]
        return len(ids) - int(len(ids) > 0 and ids[-1] in self._tokenizer.all_special_ids)

    def _dimension(self, pooling: tuple[str, ...]) -> int:
        """Return the length of a vector before truncation."""
        width = self._width * len(pooling)
        for stage in self._config.stages:
            if isinstance(stage, DenseConfig):
                if stage.in_features != width:
                    modes = "+".join(pooling)
                    raise _bad_param(
                        f"pooling={modes} gives {width} numbers; the next layer takes {stage.in_features}."
                    )
                width = stage.out_features
        return int(width)


def _load_encoder(source: ModelSource, device: str) -> Any:
    """Return the model without a head; for an encoder-decoder such as T5, the encoder."""
    kind = _encoder_class(load_config(source)) or AutoModel
    model = load_model(kind, source, device, ignore_missing=(r"(^|\.)pooler\.",))
    model.config.use_cache = False  # no next token will use the keys and values
    return model


def _encoder_class(config: Any) -> Any:
    """Return the encoder class of an encoder-decoder, even if only its encoder was saved; None for other models."""
    whole = MODEL_MAPPING.get(type(config), None)
    name = whole.__name__.removesuffix("Model") + "EncoderModel" if isinstance(whole, type) else ""
    if config.is_encoder_decoder or name in (config.architectures or ()):
        return getattr(transformers, name, None)
    return None


def _is_dual_encoder(config: Any) -> bool:
    """Whether the model has an encoder for texts and another for images or sound, such as CLIP."""
    return type(config) in MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING or isinstance(config, ClapConfig)


def _is_causal(config: Any) -> bool:
    """Whether each token only sees those before it, so that only the last one sees the whole text."""
    return any(name.endswith("ForCausalLM") for name in config.architectures or ())


def _bad_param(message: str) -> ModelError:
    return ModelError("bad_param", message)
