"""Embedding: one vector for each text, or for each piece of a text.

A model saved by sentence-transformers is run as its configuration says: prompts, lower-casing, length, pooling,
further layers, normalization. Any other is run with the defaults of sentence-transformers, mean pooling (for a causal
model, the last token's state), and its vectors are scaled to length 1.

Vectors are float32 here, whatever the job's `precision`: `workers.celery_worker.vector_precision` converts them.
"""

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
import transformers
from tokenizers import normalizers
from transformers import MODEL_MAPPING, AutoModel

from common.embedding_params import PACKED, WITH_RANGES, check_embedding_params, check_packs
from common.errors import ModelError, first_line
from common.params import check_params
from common.records import Failure, Json, Outcome
from common.task_outputs import embedding_form
from common.task_params import TASK_PARAMS
from common.vector_ranges import decode_ranges
from workers.inference.core.async_copy import PendingResult, copy_to_host_async
from workers.inference.core.batches import Item, run_batches
from workers.inference.core.device_errors import is_device_lost, is_out_of_memory
from workers.inference.core.runner import PreparingRunner, RunMonitor
from workers.inference.core.samples import samples
from workers.inference.core.token_budget import TokenBudget
from workers.inference.embedding.chat_template import ChatTemplateEncoder
from workers.inference.embedding.pieces import Piece, Split, cut_pieces
from workers.inference.embedding.pooling import load_dense, normalize, pool
from workers.inference.embedding.sentence_transformers_config import (
    DenseConfig,
    SentenceTransformersConfig,
    read_sentence_transformers_config,
)
from workers.inference.loading.batch_invariance import ensure_batch_invariance
from workers.inference.loading.loader import ModelSource, load_config, load_model, load_tokenizer
from workers.inference.loading.outputs_match import outputs_match
from workers.inference.text.packing import PROBE_TEXTS, PackingRunner, VarlenPacker, supports_varlen_kernel, unpack
from workers.inference.text.tokenization import (
    NO_TOKENS,
    TokenizedText,
    accepted_features,
    check_text,
    encode,
    on_device,
    pad,
    parse_inputs,
)
from workers.inference.text.truncation import input_token_limit
from workers.models.load_options import DEFAULT_OPTIONS, LoadOptions

_NOT_FINITE = Failure("not_finite", "The model's vector holds NaN or infinity, for which the precision has no number.")


@dataclass(frozen=True, slots=True)
class _EmbeddingParams:
    """A job's parameters, completed by the model's configuration."""

    pooling: tuple[str, ...]
    prompt: str
    normalize: bool | None  #: None: as the model is configured
    dimension: int  #: of the vectors, after truncation
    split: Split | None  #: how texts are cut into pieces; None: not at all
    finite: bool  #: whether the job's precision has no numbers for NaN and infinity


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A tokenized chunk."""

    params: _EmbeddingParams
    skip: int  #: tokens at the beginning of every text that are not pooled
    items: Sequence[Item[TokenizedText]]
    pieces: Sequence[Piece]  #: the place of each item
    failed: Mapping[int, Outcome]  #: inputs that are not texts, by position


class EmbeddingRunner(PackingRunner, PreparingRunner):
    """Turns texts into float32 vectors.

    Parameters: `pooling` (a mode, or several joined by `+`), `normalize`, `prompt` or `prompt_name`, `truncate_dim`
    (keeps the first numbers of a vector, before `normalize=true` scales it, like sentence-transformers),
    `split_tokens` and `split_overlap` (`workers.inference.embedding.pieces`). `precision` and `ranges` are checked.
    """

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
        self._model = _load_encoder(source, device)
        if found is None and _is_causal(self._model.config):
            self._config = SentenceTransformersConfig(directory, ("lasttoken",))
        self._tokenizer = load_tokenizer(source)
        if self._config.lower_case:
            _lower_case(self._tokenizer)
        self._messages = ChatTemplateEncoder(self._tokenizer, self._config.message) if self._config.message else None
        self._limit = _limit(self._config, self._tokenizer, self._model)
        self._stages = [
            load_dense(stage, device, allow_pickle=options.allow_pickle)
            if isinstance(stage, DenseConfig)
            else normalize
            for stage in self._config.stages
        ]
        self.budget = TokenBudget.of(device)
        self._tokenizer_lock = threading.Lock()  # a tokenizer cannot be reconfigured while another thread uses it
        ensure_batch_invariance(self.budget, self._model, self._trial_rows, self._trial)
        if supports_varlen_kernel(self._model):
            self.pack()
        self._width = self._state_width()

    def output_type(self, params: Mapping[str, Json]) -> pa.DataType:
        """Return the type of a vector of float32, or of a list of pieces with one each."""
        return embedding_form({**params, "precision": "float32"}).arrow_type(length=self._parse(params).dimension)

    def prepare(self, inputs: Sequence[Json], params: Mapping[str, Json]) -> _Prepared:
        """Return the tokenized texts, or pieces of texts."""
        parsed = self._parse(params)
        texts, failed = parse_inputs(inputs, check_text)
        pieces = self._pieces(texts, parsed.split)
        encoded = self._encode([texts[one.position][one.start : one.end] for one in pieces], parsed.prompt)
        found = [(one, row) for one, row in zip(pieces, encoded, strict=True) if len(row)]
        items = [Item(one.position, len(row), row) for one, row in found]
        failed |= dict.fromkeys(texts.keys() - {item.position for item in items}, Outcome(failure=NO_TOKENS))
        return _Prepared(parsed, self._prompt_tokens(parsed.prompt), items, [one for one, _ in found], failed)

    def run_prepared(self, prepared: _Prepared, monitor: RunMonitor) -> list[Outcome]:
        """Return a float32 array of shape (dimension,) for each text or, for its pieces, a list of objects."""

        def forward(rows: Sequence[TokenizedText]) -> Sequence[Any] | PendingResult[Any]:
            return self._vectors(rows, prepared.params, prepared.skip)

        results = run_batches(prepared.items, forward, self.budget, monitor)
        outcomes = {**prepared.failed, **_outcomes(prepared, results)}
        return [outcomes[position] for position in range(len(outcomes))]

    def _pieces(self, texts: Mapping[int, str], split: Split | None) -> list[Piece]:
        """Return the pieces of all texts; a text that is not split is one piece."""
        if split is None:
            return [Piece(position, 0, len(text)) for position, text in texts.items()]
        with self._tokenizer_lock:
            whole = encode(self._tokenizer, list(texts.values()), None, special=False)
        return [
            piece
            for (position, text), row in zip(texts.items(), whole, strict=True)
            for piece in cut_pieces(position, text, row, split)
        ]

    def token_counts(self, texts: Sequence[str], params: Mapping[str, Json]) -> list[int]:
        """Return the number of tokens of each text after truncation, including special ones and the prompt."""
        return [len(row) for row in self._encode(texts, self._parse(params).prompt)]

    def _encode(self, texts: Sequence[str], prompt: str = "") -> list[TokenizedText]:
        with self._tokenizer_lock:
            if self._messages:
                return self._messages.encode(texts, prompt, self._limit)
            return encode(self._tokenizer, [prompt + text for text in texts], self._limit)

    def _vectors(
        self, rows: Sequence[TokenizedText], params: _EmbeddingParams, skip: int
    ) -> Sequence[Any] | PendingResult[Any]:
        hidden, mask = self._hidden_states(rows)
        vectors = pool(hidden, mask, params.pooling, skip)
        for stage in self._stages:
            if params.normalize is not False or stage is not normalize:
                vectors = stage(vectors)
        vectors = vectors[:, : params.dimension]
        if params.normalize:
            vectors = normalize(vectors)
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

    def _trial_rows(self) -> list[dict[str, list[int]]]:
        return [row.features for row in self._encode(cast("Sequence[str]", samples(self._task)))]

    def _trial(self, rows: Sequence[Mapping[str, Any]]) -> list[list[torch.Tensor]]:
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
        expected = [self._trial([row.features])[0][0].cpu() for row in rows]

        def agrees(packer: VarlenPacker) -> bool:
            found = self._hidden_packed(rows, packer).to(self._model.dtype)
            return all(
                outputs_match(state[: len(row)], one) for state, row, one in zip(found, rows, expected, strict=True)
            )

        return self._pack(agrees)

    def _hidden_packed(self, rows: Sequence[TokenizedText], packer: VarlenPacker) -> torch.Tensor:
        """Return what `_hidden` does, with the rows packed into one."""
        names = accepted_features(rows[0].features, self._model)
        features = [{name: row.features[name] for name in names} for row in rows]
        with torch.inference_mode(), packer.packed(features) as inputs:
            return unpack(self._model(**inputs).last_hidden_state.float(), [len(row) for row in rows])

    def _prompt_tokens(self, prompt: str) -> int:
        """Return how many tokens at the beginning of every text belong to the prompt and are not pooled."""
        if self._config.include_prompt or not prompt or self._messages:  # all tokens of a chat are pooled
            return 0
        ids = self._encode([prompt])[0].features["input_ids"]
        return len(ids) - int(bool(ids) and ids[-1] in self._tokenizer.all_special_ids)

    def _parse(self, params: Mapping[str, Json]) -> _EmbeddingParams:
        check_params(self._task, TASK_PARAMS["embedding"], params)
        check_embedding_params(params)
        pooling = tuple(params["pooling"].split("+")) if "pooling" in params else self._config.pooling
        scaled = params.get("normalize", None if self._configured else True)
        dimension = self._dimension(pooling)
        if "truncate_dim" in params and params["truncate_dim"] > dimension:
            raise _bad_param(f"truncate_dim must be at most {dimension}, the length of this model's vectors.")
        cut = params.get("truncate_dim", self._config.truncate_dim)
        dimension, prompt = min(dimension, cut or dimension), self._prompt(params)
        _check_precision(params, dimension)
        finite = params.get("precision") in (*WITH_RANGES, *PACKED)
        return _EmbeddingParams(pooling, prompt, scaled, dimension, self._split(params, prompt), finite)

    def _split(self, params: Mapping[str, Json], prompt: str) -> Split | None:
        if "split_tokens" not in params:
            return None
        if not self._tokenizer.is_fast:
            raise _bad_param("split_tokens needs a tokenizer that knows the place of each token; this model has none.")
        tokens, overlap = params["split_tokens"], params.get("split_overlap", 0)
        if self._limit is None:
            return Split(tokens, overlap)
        if tokens > self._limit:
            raise _bad_param(f"split_tokens must be at most {self._limit}, the number of tokens that this model takes.")
        [others] = self._encode([""], prompt)
        room = self._limit - len(others)
        if room < 2 * overlap or room < 1:
            raise _bad_param(
                f"split_overlap must be at most {max(room, 0) // 2}: of the {self._limit} tokens that this model "
                f"takes, {len(others)} are special ones or the prompt's."
            )
        return Split(min(tokens, room), overlap)

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

    def _prompt(self, params: Mapping[str, Json]) -> str:
        if "prompt" in params and "prompt_name" in params:
            raise _bad_param("Set prompt or prompt_name, not both.")
        name = params.get("prompt_name", self._config.default_prompt)
        if "prompt" in params or name is None:
            return str(params.get("prompt", ""))
        if name not in self._config.prompts:
            known = ", ".join(self._config.prompts) or "none"
            raise _bad_param(f"This model has no prompt {name!r}; it has: {known}.")
        return self._config.prompts[name]


def _check_precision(params: Mapping[str, Json], dimension: int) -> None:
    """Raise `bad_param` if vectors of that dimension cannot have the job's precision."""
    check_packs(params.get("precision", "float32"), dimension)
    ranges = decode_ranges(params["ranges"]) if "ranges" in params else None
    if ranges is not None and len(ranges.min) != dimension:
        raise _bad_param(
            f"ranges has {len(ranges.min):,} dimensions ({ranges.source}), and the vectors have {dimension:,}."
        )


def _outcomes(prepared: _Prepared, results: Sequence[Any]) -> dict[int, Outcome]:
    """Return the outcome of each input that has items, by position, from the results of all items."""
    groups: dict[int, list[int]] = defaultdict(list)
    for number, item in enumerate(prepared.items):
        groups[item.position].append(number)
    return {position: _outcome(prepared, results, numbers) for position, numbers in groups.items()}


def _outcome(prepared: _Prepared, results: Sequence[Any], numbers: Sequence[int]) -> Outcome:
    """Return the outcome of one input; `numbers` are those of its items."""
    params, found = prepared.params, [results[number] for number in numbers]
    failure = next(filter(None, (_failure(result, params) for result in found)), None)
    if failure:
        return Outcome(failure=failure)
    truncated = any(prepared.items[number].value.truncated for number in numbers)
    if params.split is None:
        return Outcome(found[0], truncated=truncated)
    pieces = [prepared.pieces[number] for number in numbers]
    output = [{"start": one.start, "end": one.end, "vector": vector} for one, vector in zip(pieces, found, strict=True)]
    return Outcome(output, truncated=truncated)


def _failure(result: Any, params: _EmbeddingParams) -> Failure | None:
    if isinstance(result, Failure):
        return result
    return _NOT_FINITE if params.finite and not np.isfinite(result).all() else None


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


def _is_causal(config: Any) -> bool:
    """Whether each token only sees those before it, so that only the last one sees the whole text."""
    return any(name.endswith("ForCausalLM") for name in config.architectures or ())


def _limit(config: SentenceTransformersConfig, tokenizer: Any, model: Any) -> int | None:
    if config.max_tokens is None:
        return input_token_limit(model, tokenizer)
    positions = input_token_limit(model, tokenizer=None)
    return config.max_tokens if positions is None else min(config.max_tokens, positions)


def _lower_case(tokenizer: Any) -> None:
    """Make the tokenizer lower-case its texts, but not special tokens."""
    if not tokenizer.is_fast:
        tokenizer.do_lower_case = True
        return
    backend = tokenizer.backend_tokenizer
    steps = [normalizers.Lowercase()] if backend.normalizer is None else [normalizers.Lowercase(), backend.normalizer]
    backend.normalizer = normalizers.Sequence(steps)


def _bad_param(message: str) -> ModelError:
    return ModelError("bad_param", message)
