"""The runner of `transformers` pipelines over text, with its own batching.

`pipe(list, batch_size=...)` is never called: there one bad record loses its batch, and batches follow the order of
the records. Here each record is prepared by itself, the inputs are sorted by length and cut by a token budget, and a
record is finished as soon as its last input has run, so that no batch's scores outlive it.

An encoder task (`workers.inference.tasks.encoder_tasks`) also has `forward_batch`, which takes a whole chunk tokenized
in one call. It is compared with the pipeline once, when the model is loaded, and used only if both agree. The pipeline
still runs jobs with parameters that `forward_batch` does not support, and records that it would have to truncate.
"""

import inspect
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from common.json_codec import to_jsonable
from common.records import Failure, Json, Outcome
from common.tasks import find_task
from workers.inference.core.async_copy import PendingResult
from workers.inference.core.batches import Item, run_batches
from workers.inference.core.device_errors import is_device_lost, is_out_of_memory
from workers.inference.core.fallbacks import count_fallback
from workers.inference.core.runner import NullMonitor, PreparingRunner, RunMonitor
from workers.inference.core.samples import samples
from workers.inference.core.token_budget import TokenBudget
from workers.inference.loading.batch_invariance import ensure_batch_invariance
from workers.inference.loading.loader import ModelSource, load_model, load_tokenizer
from workers.inference.loading.outputs_match import outputs_match
from workers.inference.tasks.encoder_tasks import ENCODER_TASKS, EncoderTask
from workers.inference.tasks.pipeline_task import (
    PipelineParams,
    PipelineTask,
    PreparedRecord,
    RowOutput,
    finish_record,
    prepare_record,
)
from workers.inference.tasks.table_question_answering import TableQuestionAnswering
from workers.inference.tasks.text_generation import TextGeneration
from workers.inference.text.packing import PROBE_TEXTS, PackingRunner, VarlenPacker, packs_faster
from workers.inference.text.tokenization import TokenizedText, encode, parse_inputs
from workers.inference.text.truncation import ModelInputs
from workers.models.load_options import DEFAULT_OPTIONS, LoadOptions

logger = logging.getLogger(__name__)

#: Task classes by the name of the task.
PIPELINE_TASKS: Mapping[str, type[PipelineTask[Any]]] = {
    task.name: task for task in (*ENCODER_TASKS, TextGeneration, TableQuestionAnswering)
}


@dataclass(frozen=True, slots=True)
class _Input:
    """One input of one record."""

    record: PreparedRecord
    number: int

    @property
    def value(self) -> Any:
        return self.record.inputs[self.number]


@dataclass(frozen=True, slots=True)
class _PreparedChunk:
    """A chunk before its forward passes."""

    inputs: Sequence[Json]
    params: Mapping[str, Json]
    parsed: PipelineParams | None = None  #: None if all records run through the pipeline
    records: Mapping[int, PreparedRecord] = field(default_factory=dict)  #: tokenized for `forward_batch`, by position
    outcomes: Mapping[int, Outcome] = field(default_factory=dict)  #: of records that cannot run


#: Runs a batch; returns one row for each input, now or once the device is done.
Forward = Callable[[list[_Input]], Sequence[RowOutput] | PendingResult[RowOutput]]
#: Makes a record's output of its rows.
Postprocess = Callable[[Sequence[RowOutput], PreparedRecord], Json]


class PipelineRunner(PackingRunner, PreparingRunner):
    """A task of `transformers.pipeline` with the same outputs, in batches that are made here."""

    task: PipelineTask[Any]
    encoder: EncoderTask | None = None  #: the task, if its `forward_batch` agrees with the pipeline

    def __init__(self, task: str, model: Path | None, device: str, options: LoadOptions = DEFAULT_OPTIONS) -> None:
        """Load the model with the head of `task`, and its tokenizer; compare `forward_batch` with the pipeline.

        Raises:
            ModelError: as `load_model` and `load_tokenizer`; `no_mask_token`, for fill-mask.
        """
        chosen = PIPELINE_TASKS[find_task(task).name]
        source = ModelSource.of(task, model, options)
        self._device = device
        self._model = load_model(
            getattr(transformers, chosen.auto_class), source, device, ignore_missing=chosen.ignore_missing
        )
        self._has_cache = "use_cache" in inspect.signature(self._model.forward).parameters
        self._tokenizer = load_tokenizer(source)
        self._tokenizer_lock = threading.Lock()  # its settings cannot change while another thread uses it
        self.task = chosen.from_model(self._model, self._tokenizer, device)
        self.task.max_new_tokens = options.max_new_tokens
        self.budget = TokenBudget.of(device, generates=self.task.generates)
        if not self.task.can_batch:
            self.budget.items = 1
        ensure_batch_invariance(self.budget, self._model, self._sample_inputs, self._pipeline_trial)
        if isinstance(self.task, EncoderTask):
            self._use_forward_batch(self.task)
        elif isinstance(self.task, TextGeneration):
            self.task.try_continuous_batching(self.budget)

    def pack(self) -> bool:
        """Run batches as packed rows from now on, if the model gives the same for them; return whether it does."""
        encoder = self.encoder
        if encoder is None:
            return False
        rows = encode(self._tokenizer, PROBE_TEXTS, encoder.limit)
        rows = [row for row in rows if encoder.refusal(PreparedRecord([row])) is None] or encode(
            self._tokenizer, [f"{self._tokenizer.mask_token} {text}" for text in PROBE_TEXTS], encoder.limit
        )
        return self._pack(
            lambda packer: self._logits(encoder, rows, packer),
            lambda: [self._logits(encoder, [row])[0] for row in rows],
            first_tokens=encoder.first_tokens,
        )

    def is_deterministic(self, params: Mapping[str, Json]) -> bool:
        """Return whether the task gives equal records equal outputs under these parameters.

        Raises:
            ModelError: `bad_param`.
        """
        if isinstance(self.task, EncoderTask):  # parsing may use the tokenizer, which another thread may be using
            return True
        return self.task.is_deterministic(self.task.parse_params(params))

    def prepare(self, inputs: Sequence[Json], params: Mapping[str, Json]) -> _PreparedChunk:
        """Return the texts of the records, tokenized for `forward_batch`, where it is used."""
        encoder = self.encoder
        if encoder is None or params.keys() & encoder.pipeline_only_params:
            return _PreparedChunk(inputs, params)
        with self._tokenizer_lock:
            parsed = encoder.parse_params(params)
            records, outcomes = parse_inputs(inputs, lambda value: encoder.parse(value, parsed))
            self._tokenize(encoder, records.values())
        for position, record in list(records.items()):
            refusal = encoder.refusal(record)
            if refusal:
                outcomes[position] = Outcome(failure=refusal)
            if refusal or not encoder.fits(record):
                del records[position]
        return _PreparedChunk(inputs, params, parsed, records, outcomes)

    def run_prepared(self, prepared: _PreparedChunk, monitor: RunMonitor) -> list[Outcome]:
        """Return for each record what `pipeline(task)(record, **params)` gives, in order."""
        outcomes = dict(prepared.outcomes)
        encoder, parsed = self.encoder, prepared.parsed
        if encoder is not None and parsed is not None:
            items = [
                Item(position, len(row), _Input(record, number))
                for position, record in prepared.records.items()
                for number, row in enumerate(record.inputs)
            ]
            forward: Forward = partial(self._forward_batch, encoder, parsed)
            outcomes |= self._run_items(
                items,
                forward,
                lambda rows, record: encoder.postprocess_batch(rows, record, parsed),
                self.budget,
                monitor,
            )
        rest = {position: value for position, value in enumerate(prepared.inputs) if position not in outcomes}
        if rest:
            with self._tokenizer_lock:
                outcomes |= self._run_pipeline(rest, prepared.params, monitor)
        return [outcomes[position] for position in range(len(prepared.inputs))]

    def _run_pipeline(
        self, inputs: Mapping[int, Json], params: Mapping[str, Json], monitor: RunMonitor
    ) -> dict[int, Outcome]:
        """Return the outcomes of records, by position, that run through the steps of the pipeline."""
        task, parsed = self.task, self.task.parse_params(params)
        outcomes: dict[int, Outcome] = {}
        groups: dict[int, list[Item[_Input]]] = defaultdict(list)
        for position, value in inputs.items():
            monitor.tick()
            record = prepare_record(task, value, parsed)
            if isinstance(record, Failure):
                outcomes[position] = Outcome(failure=record)
                continue
            for number, one in enumerate(record.inputs):
                groups[task.group(one, parsed)].append(Item(position, task.tokens(one, parsed), _Input(record, number)))

        def forward(parts: list[_Input]) -> Sequence[RowOutput]:
            return task.forward([part.value for part in parts], parsed, monitor)

        for key in sorted(groups, reverse=True):
            budget = task.budget(self.budget, key)
            outcomes |= self._run_items(
                groups.pop(key), forward, lambda rows, record: task.postprocess(rows, record, parsed), budget, monitor
            )
            if budget is not self.budget:
                self.budget.tokens_run += budget.tokens_run
        return outcomes

    def _run_items(
        self,
        items: Sequence[Item[_Input]],
        forward: Forward,
        postprocess: Postprocess,
        budget: TokenBudget,
        monitor: RunMonitor,
    ) -> dict[int, Outcome]:
        """Run inputs in batches; return the outcomes of the records that are complete with them, by position."""

        def run(parts: list[_Input]) -> Sequence[Outcome | None] | PendingResult[Outcome | None]:
            rows = forward(parts)
            return rows.then(partial(collect, parts)) if isinstance(rows, PendingResult) else collect(parts, rows)

        def collect(parts: list[_Input], rows: Sequence[RowOutput]) -> list[Outcome | None]:
            return [self._collect(part, row, postprocess) for part, row in zip(parts, rows, strict=True)]

        outcomes: dict[int, Outcome] = {}
        for item, result in zip(items, run_batches(items, run, budget, monitor), strict=True):
            if result is not None:
                outcomes[item.position] = Outcome(failure=result) if isinstance(result, Failure) else result
        return outcomes

    def _collect(self, part: _Input, row: RowOutput, postprocess: Postprocess) -> Outcome | None:
        """Keep a row; return the outcome of its record if it was the last."""
        record = part.record
        record.rows[part.number] = row
        if len(record.rows) < len(record.inputs):
            return None
        rows = [record.rows.pop(number) for number in range(len(record.inputs))]
        plain = self.task.gives_plain_values
        return finish_record(
            record, lambda: postprocess(rows, record) if plain else to_jsonable(postprocess(rows, record))
        )

    def _forward_batch(
        self, encoder: EncoderTask, params: PipelineParams, parts: Sequence[_Input]
    ) -> Sequence[Any] | PendingResult[Any]:
        with torch.inference_mode():
            logits = self._logits(encoder, [part.value for part in parts], self._packer)
            return encoder.reduce(logits, [part.record for part in parts], params)

    def _logits(
        self, encoder: EncoderTask, rows: Sequence[TokenizedText], packer: VarlenPacker | None = None
    ) -> list[Tensor]:
        with self.model_inputs([row.features for row in rows], packer) as inputs:
            if packer is None and len({len(row) for row in rows}) == 1:
                inputs.pop("attention_mask", None)
            if packer is None and self._has_cache:
                inputs["use_cache"] = False  # keys and values would be kept for a next token that never comes
            return encoder.forward_batch(inputs, rows)

    def _sample_inputs(self) -> list[ModelInputs]:
        params = self.task.parse_params({})
        records = [
            prepare_record(self.task, value, params) for value in samples(self.task.name, self._tokenizer.mask_token)
        ]
        return [inputs for record in records if isinstance(record, PreparedRecord) for inputs in record.inputs]

    def _pipeline_trial(self, batch: Sequence[ModelInputs]) -> list[list[Tensor]]:
        return self.task.trial(batch, self.task.parse_params({}))

    def _use_forward_batch(self, encoder: EncoderTask) -> None:
        """Use `forward_batch` from now on, if its outputs equal the pipeline's; in packed rows, if they are faster."""
        rows: list[TokenizedText] = []
        if self._tokenizer.is_fast and encoder.can_batch:
            rows = self._matching_samples(encoder)
        if not rows:
            logger.info("%s runs through the pipeline: forward_batch differs from it", type(self._model).__name__)
            return
        self.encoder = encoder

        def trial(texts: Sequence[Mapping[str, Any]]) -> list[list[Tensor]]:
            with torch.inference_mode():
                found = self._logits(encoder, [TokenizedText(dict(text), truncated=False) for text in texts])
            return [[logits] for logits in found]

        ensure_batch_invariance(self.budget, self._model, lambda: [row.features for row in rows], trial)
        if packs_faster(self._model):
            self.pack()

    def _matching_samples(self, encoder: EncoderTask) -> list[TokenizedText]:
        """Return samples, tokenized, if `forward_batch` gives for each what the pipeline gives, else none."""
        params = encoder.parse_params({})
        try:
            values = samples(encoder.name, self._tokenizer.mask_token)
            records = [encoder.parse(value, params) for value in values]
            self._tokenize(encoder, records)
            fitting = [n for n, record in enumerate(records) if encoder.fits(record)]
            rows = [row for n in fitting for row in records[n].inputs]
            with torch.inference_mode():
                expected = self._pipeline_logits(encoder, [values[n] for n in fitting], params)
                found = [self._logits(encoder, [row])[0] for row in rows]
        except Exception as error:  # any architecture may be loaded; the pipeline runs those that fail here
            if is_out_of_memory(error) or is_device_lost(error):
                raise
            logger.debug("forward_batch fails for %s", type(self._model).__name__, exc_info=True)
            count_fallback("forward_batch", error)
            return []
        return rows if all(map(outputs_match, found, expected)) else []

    def _pipeline_logits(self, encoder: EncoderTask, values: Sequence[Json], params: PipelineParams) -> list[Tensor]:
        inputs = [one for value in values for one in encoder.prepare(value, params).inputs]
        rows = [encoder.forward([one], params, NullMonitor())[0] for one in inputs]
        return [encoder.pipeline_logits(row) for row in rows]

    def _tokenize(self, encoder: EncoderTask, records: Collection[PreparedRecord]) -> None:
        """Tokenize the texts of all records in one call."""
        texts = [text for record in records for text in record.texts]
        rows = iter(encode(self._tokenizer, texts, encoder.limit if encoder.truncates else None))
        for record in records:
            record.inputs = [next(rows) for _ in record.texts]
            record.truncated = any(row.truncated for row in record.inputs)
