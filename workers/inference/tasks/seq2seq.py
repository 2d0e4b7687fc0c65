"""Translation, summarization and other tasks of encoder-decoder models, in the shape that transformers 4 gave them.

Transformers 5 took these pipelines out; the models still load. As there, the model's `task_specific_params` bring the
prefix and the settings of the task, and the job's own parameters win over all. What neither sets is 256 new tokens and
four beams. Unlike there, a text too long for the model is cut, and its outcome says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForSeq2SeqLM, LogitsProcessorList, StoppingCriteriaList

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
from workers.inference.generation.params import build_generation_config
from workers.inference.generation.seeded_sampling import DISABLED_WARPERS, SeededSampler, logits_warpers, record_seed
from workers.inference.generation.token_callback import CancelCriteria
from workers.inference.generation.translation import TranslationDirection, translation_direction
from workers.inference.models.batch_invariance import ensure_batch_invariance, next_token_logits
from workers.inference.models.loader import ModelRunner, ModelSource, load_model, load_tokenizer
from workers.inference.text.tokenization import NO_TOKENS, check_text, encode, merge_outcomes, pad, parse_inputs
from workers.inference.text.truncation import input_token_limit
from workers.models.load_options import DEFAULT_OPTIONS, LoadOptions

#: What the text is called in the output, by the first word of the task's name.
_NAMES = {"translation": "translation_text", "summarization": "summary_text"}
#: What the pipelines of transformers 4.57 took where neither model nor job said.
_NEW_TOKENS = 256
_BEAMS = 4


@dataclass(frozen=True, slots=True)
class _Seq2SeqParams:
    """What a job asked for, the model's and the task's settings filled in."""

    config: Any  #: a GenerationConfig
    prefix: str
    source: str | None
    truncation: bool
    clean_up: bool
    seed: int | None


@dataclass(frozen=True, slots=True)
class _Row:
    """One text, ready to be run."""

    features: dict[str, list[int]]
    truncated: bool
    seed: int


class Seq2SeqRunner(ModelRunner):
    """Texts to texts.

    Parameters: those of `generate` (`common.task_params.GENERATE_PARAMS`), `truncation` (true; with false, a text too
    long for the model fails), `clean_up_tokenization_spaces` (false), `seed`, and for translation `src_lang` and
    `tgt_lang`. With a seed, a sampled text depends on seed and record alone.
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
        """Return for each text a list with one object, or `num_return_sequences` of them, that holds the text."""
        chosen = self._options(params)
        texts, refused = parse_inputs(inputs, check_text)
        beams = max(chosen.config.num_beams or 1, chosen.config.num_return_sequences or 1)
        items = []
        for position, row in zip(texts, self._rows(list(texts.values()), chosen), strict=True):
            tokens = len(row.features["input_ids"])
            if not tokens:
                refused[position] = Outcome(failure=NO_TOKENS)
            elif self._positions is not None and tokens > self._positions:
                refused[position] = Outcome(failure=_too_long(tokens, self._positions))
            else:
                items.append(Item(position, tokens * beams, row))
        budget = self.budget
        if chosen.config.encoder_no_repeat_ngram_size or chosen.config.encoder_repetition_penalty not in (None, 1.0):
            # These look at the encoder's input without its mask, and would see the padding.
            budget = TokenBudget(budget.tokens, items=1)
        results = run_batches(items, lambda rows: self._generate(rows, chosen, monitor), budget, monitor)
        return merge_outcomes(refused, items, results)

    def is_deterministic(self, params: Mapping[str, Json]) -> bool:
        """Return whether nothing is sampled, or by a seed.

        Raises:
            ModelError: `bad_param`.
        """
        chosen = self._options(params)
        return not chosen.config.do_sample or chosen.seed is not None

    def _trial_rows(self) -> list[dict[str, list[int]]]:
        return [
            row.features for row in encode(self._tokenizer, cast("Sequence[str]", samples(self._task)), self._limit)
        ]

    def _trial(self, rows: Sequence[Mapping[str, Any]]) -> list[list[torch.Tensor]]:
        return next_token_logits(self._model, self._inputs(rows), len(rows))

    def _inputs(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        features = pad(rows, self._tokenizer, self._device)
        return {name: features[name] for name in ("input_ids", "attention_mask")}

    def _rows(self, texts: list[str], chosen: _Seq2SeqParams) -> list[_Row]:
        if chosen.source is not None:
            self._tokenizer.src_lang = chosen.source
        limit = self._limit if chosen.truncation else None
        encoded = encode(self._tokenizer, [chosen.prefix + text for text in texts], limit)
        seeds = [0 if chosen.seed is None else record_seed(chosen.seed, text) for text in texts]
        return [_Row(row.features, row.truncated, seed) for row, seed in zip(encoded, seeds, strict=True)]

    def _generate(
        self, rows: Sequence[_Row], chosen: _Seq2SeqParams, monitor: RunMonitor
    ) -> list[list[dict[str, str]]]:
        more: dict[str, Any] = {"tokenizer": self._tokenizer} if chosen.config.stop_strings else {}
        if chosen.seed is not None:
            copies = chosen.config.num_return_sequences or 1
            choice = SeededSampler(logits_warpers(chosen.config), [row.seed for row in rows], copies)
            more |= {**DISABLED_WARPERS, "logits_processor": LogitsProcessorList([choice])}
        ids = self._model.generate(
            **self._inputs([row.features for row in rows]),
            generation_config=chosen.config,
            stopping_criteria=StoppingCriteriaList([CancelCriteria(monitor)]),
            **more,
        )
        texts = [{self._name: self._decode(row, chosen)} for row in ids]
        each = len(texts) // len(rows)
        return [texts[first : first + each] for first in range(0, len(texts), each)]

    def _decode(self, ids: torch.Tensor, chosen: _Seq2SeqParams) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=chosen.clean_up)
        return text

    def _options(self, params: Mapping[str, Json]) -> _Seq2SeqParams:
        translates = self._name == _NAMES["translation"]
        params = check_params(self._task, TASK_PARAMS[find_task(self._task).name], params)
        task_params = getattr(self._model.config, "task_specific_params", None) or {}
        way = (
            translation_direction(self._task, params, self._tokenizer, task_params)
            if translates
            else TranslationDirection(self._task)
        )
        of_task = dict(task_params.get(way.task, {}))
        prefix = of_task.pop("prefix", None) or getattr(self._model.config, "prefix", None) or ""
        config = self._settings(params, way, of_task)
        return _Seq2SeqParams(
            config=config,
            prefix=way.prefix + prefix,
            source=way.source,
            truncation=params.get("truncation", True),
            clean_up=params.get("clean_up_tokenization_spaces", False),
            seed=params.get("seed") if config.do_sample else None,
        )

    def _settings(self, params: Mapping[str, Json], way: TranslationDirection, of_task: Mapping[str, Json]) -> Any:
        defaults: dict[str, Json] = {
            "pad_token_id": self._tokenizer.pad_token_id,
            "max_new_tokens": min(_NEW_TOKENS, self._positions or _NEW_TOKENS),
            "num_beams": 1 if params.get("do_sample") else _BEAMS,
        }
        language = {} if way.first_token is None else {"forced_bos_token_id": way.first_token}
        asked = {name: params[name] for name in GENERATE_PARAMS if name in params}
        config = build_generation_config(self._model, defaults, of_task, language, asked)
        apply_token_limit(self._task, asked, config, self._max_new_tokens)
        if "seed" in params and config.do_sample and (config.num_beams or 1) > 1:
            raise ModelError("bad_param", "seed does not go with beams: leave it out, or say num_beams=1.")
        if self._positions is not None and (config.max_new_tokens or 0) > self._positions:
            raise ModelError("bad_param", f"This model has positions for {self._positions} tokens, no more.")
        return config


def _too_long(tokens: int, limit: int) -> Failure:
    return Failure("too_long", f"The text has {tokens} tokens, the model takes {limit}; truncation=true would cut it.")
