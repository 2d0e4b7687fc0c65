"""Translation, summarization and text2text generation with encoder-decoder models, as in transformers 4.

Transformers 5 removed these pipelines; the models still load. As there, the model's `task_specific_params` hold the
prefix and the settings of the task, and the job's own parameters take precedence. The defaults are 256 new tokens and
four beams. Unlike there, a text too long for the model is truncated, and its outcome says so.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForSeq2SeqLM

from common.errors import ModelError
from common.params import check_params
from common.records import Failure, Json, Outcome
from common.task_params import GENERATE_PARAMS, TASK_PARAMS
from common.tasks import find_task
from workers.inference.core.batches import Item, run_batches
from workers.inference.core.runner import RunMonitor
from workers.inference.core.samples import samples
from workers.inference.core.token_budget import TokenBudget
from workers.inference.generation.limits import apply_token_limit
from workers.inference.generation.seeded_sampling import record_seed, sampling_seed
from workers.inference.generation.token_callback import token_callbacks
from workers.inference.generation.translation import TranslationDirection, translation_direction
from workers.inference.loading.batch_invariance import ensure_batch_invariance, next_token_logits
from workers.inference.loading.loader import ModelRunner, ModelSource, load_model, load_tokenizer
from workers.inference.text.tokenization import (
    NO_TOKENS,
    TokenFeatures,
    check_text,
    encode,
    merge_outcomes,
    pad,
    parse_inputs,
)
from workers.inference.text.truncation import input_token_limit
from workers.models.load_options import DEFAULT_OPTIONS, LoadOptions

#: The key of the text in the output, by the first word of the task's name.
_NAMES = {"translation": "translation_text", "summarization": "summary_text"}
#: Defaults of the pipelines of transformers 4.57, where neither model nor job sets a value.
_NEW_TOKENS = 256
_BEAMS = 4


@dataclass(frozen=True, slots=True)
class _Seq2SeqParams:
    """A job's parameters, completed by the model's settings for the task."""

    config: Any  #: a GenerationConfig
    prefix: str
    source: str | None  #: the tokenizer's `src_lang`
    truncation: bool
    clean_up: bool
    seed: int | None


@dataclass(frozen=True, slots=True)
class _Row:
    """One tokenized text."""

    features: TokenFeatures
    truncated: bool
    seed: int


class Seq2SeqRunner(ModelRunner):
    """Turns texts into texts.

    Parameters: those of `generate` (`common.task_params.GENERATE_PARAMS`), `truncation` (true; with false, a text too
    long for the model fails), `clean_up_tokenization_spaces` (false), `seed`, and for translation `src_lang` and
    `tgt_lang`. With a seed, a sampled text depends on the seed and the record alone.
    """

    def __init__(self, task: str, model: Path | None, device: str, options: LoadOptions = DEFAULT_OPTIONS) -> None:
        """Load the model and its tokenizer.

        Raises:
            ModelError: as `load_model` and `load_tokenizer`.
        """
        source = ModelSource.of(task, model, options)
        self._task = task
        self._device = device
        self._model = load_model(AutoModelForSeq2SeqLM, source, device)
        self._tokenizer = load_tokenizer(source)
        self._max_new_tokens = options.max_new_tokens
        self._positions = input_token_limit(self._model, tokenizer=None)
        self._limit = input_token_limit(self._model, self._tokenizer)
        self.budget = TokenBudget.of(device, generates=True)
        ensure_batch_invariance(self.budget, self._model, self._trial_rows, self._trial)
        self._name = _NAMES.get(task.partition("_")[0], "generated_text")

    def run(self, inputs: Sequence[Json], params: Mapping[str, Json], monitor: RunMonitor) -> list[Outcome]:
        """Return for each text a list of `num_return_sequences` objects with the generated text."""
        parsed = self._parse(params)
        config = parsed.config
        texts, failed = parse_inputs(inputs, check_text)
        copies = max(config.num_beams or 1, config.num_return_sequences or 1)
        items = []
        for position, row in zip(texts, self._encode(list(texts.values()), parsed), strict=True):
            tokens = len(row.features["input_ids"])
            if not tokens:
                failed[position] = Outcome(failure=NO_TOKENS)
            elif self._positions is not None and tokens > self._positions:
                message = f"The text has {tokens} tokens, the model takes {self._positions}; try truncation=true."
                failed[position] = Outcome(failure=Failure("too_long", message))
            else:
                items.append(Item(position, tokens * copies, row))
        budget = self.budget
        if config.encoder_no_repeat_ngram_size or config.encoder_repetition_penalty not in (None, 1.0):
            # These read the encoder's input without its mask, and would see the padding.
            budget = TokenBudget(budget.tokens, items=1)
        results = run_batches(items, lambda rows: self._generate(rows, parsed, monitor), budget, monitor)
        return merge_outcomes(failed, items, results)

    def is_deterministic(self, params: Mapping[str, Json]) -> bool:
        """Return whether nothing is sampled, or only by a seed.

        Raises:
            ModelError: `bad_param`.
        """
        parsed = self._parse(params)
        return not parsed.config.do_sample or parsed.seed is not None

    def _trial_rows(self) -> list[TokenFeatures]:
        return [
            row.features for row in encode(self._tokenizer, cast("Sequence[str]", samples(self._task)), self._limit)
        ]

    def _trial(self, rows: Sequence[TokenFeatures]) -> list[list[torch.Tensor]]:
        return next_token_logits(self._model, self._inputs(rows), len(rows))

    def _inputs(self, rows: Sequence[TokenFeatures]) -> dict[str, torch.Tensor]:
        features = pad(rows, self._tokenizer, self._device)
        return {name: features[name] for name in ("input_ids", "attention_mask")}

    def _encode(self, texts: list[str], params: _Seq2SeqParams) -> list[_Row]:
        if params.source is not None:
            self._tokenizer.src_lang = params.source
        limit = self._limit if params.truncation else None
        encoded = encode(self._tokenizer, [params.prefix + text for text in texts], limit)
        seeds = [0 if params.seed is None else record_seed(params.seed, text) for text in texts]
        return [_Row(row.features, row.truncated, seed) for row, seed in zip(encoded, seeds, strict=True)]

    def _generate(
        self, rows: Sequence[_Row], params: _Seq2SeqParams, monitor: RunMonitor
    ) -> list[list[dict[str, str]]]:
        seeds = None if params.seed is None else [row.seed for row in rows]
        ids = self._model.generate(
            **self._inputs([row.features for row in rows]),
            generation_config=params.config,
            tokenizer=self._tokenizer if params.config.stop_strings else None,
            **token_callbacks(params.config, monitor, seeds),
        )
        decoding = {"skip_special_tokens": True, "clean_up_tokenization_spaces": params.clean_up}
        texts = [{self._name: self._tokenizer.decode(row, **decoding)} for row in ids]
        each = len(texts) // len(rows)
        return [texts[first : first + each] for first in range(0, len(texts), each)]

    def _parse(self, params: Mapping[str, Json]) -> _Seq2SeqParams:
        params = check_params(self._task, TASK_PARAMS[find_task(self._task).name], params)
        all_task_params = getattr(self._model.config, "task_specific_params", None) or {}
        direction = TranslationDirection(self._task)
        if self._name == _NAMES["translation"]:
            direction = translation_direction(self._task, params, self._tokenizer, all_task_params)
        task_params = dict(all_task_params.get(direction.task, {}))
        prefix = task_params.pop("prefix", None) or getattr(self._model.config, "prefix", None) or ""
        config = self._generation_config(params, direction, task_params)
        return _Seq2SeqParams(
            config=config,
            prefix=direction.prefix + prefix,
            source=direction.source,
            truncation=params.get("truncation", True),
            clean_up=params.get("clean_up_tokenization_spaces", False),
            seed=sampling_seed(params.get("seed"), config),
        )

    def _generation_config(
        self, params: Mapping[str, Json], direction: TranslationDirection, task_params: Mapping[str, Json]
    ) -> Any:
        defaults: dict[str, Json] = {
            "pad_token_id": self._tokenizer.pad_token_id,
            "max_new_tokens": min(_NEW_TOKENS, self._positions or _NEW_TOKENS),
            "num_beams": 1 if params.get("do_sample") else _BEAMS,
        }
        language = {} if direction.first_token is None else {"forced_bos_token_id": direction.first_token}
        own = {name: params[name] for name in GENERATE_PARAMS if name in params}
        config = build_generation_config(self._model, defaults, task_params, language, own)
        apply_token_limit(self._task, own, config, self._max_new_tokens)
        if self._positions is not None and (config.max_new_tokens or 0) > self._positions:
            raise ModelError("bad_param", f"max_new_tokens must be at most {self._positions}, the model's positions.")
        return config


def build_generation_config(model: Any, defaults: Mapping[str, Json], *layers: Mapping[str, Json]) -> Any:
    """Return the model's generation configuration with `layers` on top, the later over the earlier.

    `defaults` only fill in what the model does not set. A layer that sets one of `max_length` and `max_new_tokens`
    replaces the other. The result always sets `max_new_tokens` (an encoder-decoder's output begins with one token),
    because `generate` lets it take precedence over `max_length`, wherever either comes from.

    Raises:
        ModelError: `bad_param`, parameters that cannot be combined.
    """
    config = copy.deepcopy(model.generation_config)
    values = {name: value for name, value in defaults.items() if getattr(config, name, None) is None}
    if config.max_length is not None:
        values.pop("max_new_tokens", None)
    for layer in layers:
        values.update({name: value for name, value in layer.items() if hasattr(config, name)})
        if "max_length" in layer and "max_new_tokens" not in layer:
            values["max_new_tokens"] = max(1, int(layer["max_length"]) - 1)
        values.pop("max_length", None)
    try:
        config.update(**values)
        config.validate()
    except (ValueError, TypeError) as error:
        raise ModelError("bad_param", f"These generation parameters cannot be combined: {error}"[:1000]) from error
    return config
