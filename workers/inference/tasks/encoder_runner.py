"""The fast runner of encoder tasks: a chunk is tokenised at once, and no more is computed than its outputs need.

Beside it stands the plain way, the pipeline's own steps (`workers.inference.tasks.pipeline_runner`). It takes the
models for which
the fast way, tried when the model is loaded, does not give the same; the jobs with parameters that the fast way does
not know; and the records that do not fit into the model whole, where the fast way does not cut.
"""

import inspect
import logging
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from common.json_codec import to_jsonable
from common.records import Failure, Json, Outcome
from common.tasks import find_task
from workers.inference.core.batches import Item, run_batches
from workers.inference.core.runner import NullMonitor, PreparingRunner, RemappedMonitor, RunMonitor
from workers.inference.core.samples import samples
from workers.inference.models.batch_invariance import ensure_batch_invariance
from workers.inference.models.outputs_match import outputs_match
from workers.inference.tasks.encoder_tasks import ENCODER_TASKS, Reduced, TaskInput
from workers.inference.tasks.pipeline_runner import PipelineRunner
from workers.inference.tasks.pipeline_task import PipelineParams
from workers.inference.text.packing import PROBE_TEXTS, PackingRunner, VarlenPacker, supports_varlen_kernel
from workers.inference.text.tokenization import NO_TOKENS, TokenizedText, encode, pad, parse_inputs

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Part:
    """One tokenised text of one record."""

    asked: TaskInput
    row: TokenizedText


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A chunk up to the forward pass."""

    inputs: Sequence[Json]
    params: Mapping[str, Json]
    parsed_params: PipelineParams | None = None  #: None where all goes the plain way
    items: Sequence[Item[_Part]] = ()
    outcomes: Mapping[int, Outcome] = field(default_factory=dict)  #: of records that are not possible
    too_long: Sequence[int] = ()  #: positions of records that the plain way is to take


class EncoderRunner(PackingRunner, PreparingRunner):
    """A task of `transformers.pipeline` with the same outputs, sooner."""

    def __init__(self, task: str, model: Path | None, device: str, load_params: Mapping[str, Json]) -> None:
        """Load the model, and try whether it gives the same both ways.

        Raises:
            ModelError: as `PipelineRunner`.
        """
        self._plain = PipelineRunner(task, model, device, load_params)
        self._device = device
        self._task = self._plain.task
        self._model = self._task.pipe.model
        self._tokenizer = self._task.tokenizer
        self.budget = self._plain.budget  # what one way learns of the device and the model holds for both
        self._way = ENCODER_TASKS[find_task(task).name](self._task)
        self._host = threading.Lock()  # a tokenizer cannot be set anew while another thread uses it
        self._arguments = inspect.signature(self._model.forward).parameters
        rows = (
            self._agreeing(samples(task, self._tokenizer.mask_token))
            if self._tokenizer.is_fast and self._task.batches
            else []
        )
        self.fast = bool(rows)
        if self.fast:
            ensure_batch_invariance(self.budget, self._model, lambda: [row.features for row in rows], self._trial)
        if not self.fast:
            logger.info("%s goes the plain way: the fast one does not give the same", type(self._model).__name__)
        elif supports_varlen_kernel(self._model):
            self.pack()

    def pack(self) -> bool:
        """Run batches as packed rows from now on, if the model gives the same so; return whether it does."""
        rows = encode(self._tokenizer, PROBE_TEXTS, self._task.limit)
        rows = [row for row in rows if self._way.refusal(row) is None] or encode(
            self._tokenizer, [f"{self._tokenizer.mask_token} {text}" for text in PROBE_TEXTS], self._task.limit
        )
        with torch.inference_mode():
            expected = [self._logits([row])[0] for row in rows]

            def agrees(packer: VarlenPacker) -> bool:
                return all(map(outputs_match, self._logits(rows, packer), (one.cpu().float() for one in expected)))

            return self._pack(agrees, first_tokens=self._way.first_tokens)

    def output_type(self, params: Mapping[str, Json]) -> pa.DataType | None:
        """Return the Arrow type of the outputs, as the plain way's."""
        return self._plain.output_type(params)

    def prepare(self, inputs: Sequence[Json], params: Mapping[str, Json]) -> _Prepared:
        """Return the texts of the records, tokenised, and what is not to be run so."""
        with self._host:
            parsed_params = self._task.parsed_params(params)
            if not self.fast or params.keys() & self._way.pipeline_only_params:
                return _Prepared(inputs, params)
            asked, outcomes = parse_inputs(inputs, lambda value: self._way.read(value, parsed_params))
            items, too_long = self._tokenised(asked, outcomes)
            return _Prepared(inputs, params, parsed_params, items, outcomes, too_long)

    def run_prepared(self, prepared: _Prepared, monitor: RunMonitor) -> list[Outcome]:
        """Return for each record what `pipeline(task)(record, **params)` gives, in order."""
        parsed_params = prepared.parsed_params
        if parsed_params is None:
            return self._plainly(range(len(prepared.inputs)), prepared, monitor)
        results = run_batches(prepared.items, lambda parts: self._forward(parts, parsed_params), self.budget, monitor)
        outcomes = {**prepared.outcomes, **self._finished(prepared.items, results, parsed_params)}
        outcomes |= zip(prepared.too_long, self._plainly(prepared.too_long, prepared, monitor), strict=True)
        return [outcomes[position] for position in range(len(prepared.inputs))]

    def _plainly(self, positions: Sequence[int], prepared: _Prepared, monitor: RunMonitor) -> list[Outcome]:
        """Return the outcomes of some records, run the plain way."""
        if not positions:
            return []
        placed = RemappedMonitor(monitor, [[position] for position in positions])
        with self._host:
            return self._plain.run([prepared.inputs[position] for position in positions], prepared.params, placed)

    def _tokenised(
        self, asked: Mapping[int, TaskInput], outcomes: dict[int, Outcome]
    ) -> tuple[list[Item[_Part]], list[int]]:
        """Return the texts of the records, tokenised, and the positions of those that the plain way is to take.

        Args:
            asked: the records, by position.
            outcomes: gets those of records that turn out not to be possible.
        """
        texts = [text for one in asked.values() for text in one.texts]
        limit = self._task.limit
        rows = iter(encode(self._tokenizer, texts, limit if self._way.truncates else None))
        items: list[Item[_Part]] = []
        too_long = []
        for position, one in asked.items():
            own = [next(rows) for _ in one.texts]
            refusal = next(filter(None, map(self._refusal, own)), None)
            if refusal:
                outcomes[position] = Outcome(failure=refusal)
            elif limit is not None and any(len(row) > limit for row in own):
                too_long.append(position)
            else:
                items += [Item(position, len(row), _Part(one, row)) for row in own]
        return items, too_long

    def _refusal(self, row: TokenizedText) -> Failure | None:
        return self._way.refusal(row) if len(row) else NO_TOKENS

    def _forward(self, parts: Sequence[_Part], parsed_params: PipelineParams) -> Reduced:
        with torch.inference_mode():
            logits = self._logits([part.row for part in parts], self._packer)
            return self._way.reduce(logits, [part.asked for part in parts], parsed_params)

    def _logits(self, rows: Sequence[TokenizedText], packer: VarlenPacker | None = None) -> list[Tensor]:
        names = [name for name in rows[0].features if name in self._arguments]
        features = [{name: row.features[name] for name in names} for row in rows]
        if packer is not None:
            with packer.packed(features) as packed:
                return self._way.forward(packed, rows)
        inputs = pad(features, self._tokenizer, self._device)
        if len({len(row) for row in rows}) == 1:
            inputs.pop("attention_mask", None)
        if "use_cache" in self._arguments:
            inputs["use_cache"] = False  # keys and values would be kept for a next token that never comes
        return self._way.forward(inputs, rows)

    def _finished(
        self, items: Sequence[Item[_Part]], results: Sequence[Any], parsed_params: PipelineParams
    ) -> dict[int, Outcome]:
        found = defaultdict(list)
        for item, result in zip(items, results, strict=True):
            found[item.position].append((item.value, result))
        return {position: self._outcome(parts, parsed_params) for position, parts in found.items()}

    def _outcome(self, parts: Sequence[tuple[_Part, Any]], parsed_params: PipelineParams) -> Outcome:
        failure = next((result for _, result in parts if isinstance(result, Failure)), None)
        if failure:
            return Outcome(failure=failure)
        rows = [(part.row, result) for part, result in parts]
        try:
            output = self._way.finish(parts[0][0].asked, rows, parsed_params)
        except Exception as error:  # the pipeline's own postprocess may raise what it likes: one record fails
            logger.debug("a record cannot be finished", exc_info=True)
            return Outcome(failure=Failure("runner_error", f"{type(error).__name__}: {error}"[:2000]))
        output = output if self.output_type({}) else to_jsonable(output)
        return Outcome(output, truncated=any(row.truncated for row, _ in rows))

    def _trial(self, rows: Sequence[Mapping[str, Any]]) -> list[list[Tensor]]:
        with torch.inference_mode():
            return [[logits] for logits in self._logits([TokenizedText(dict(row), truncated=False) for row in rows])]

    def _agreeing(self, records: Sequence[Json]) -> list[TokenizedText]:
        """Return the texts of these records, tokenised, if both ways give the same for each of them, else none."""
        try:
            with torch.inference_mode():
                asked = [self._way.read(value, self._task.parsed_params({})) for value in records]
                rows = encode(self._tokenizer, [text for one in asked for text in one.texts], None)
                if self._task.limit is not None and max(map(len, rows)) > self._task.limit:
                    return self._agreeing(records[:-1]) if records[:-1] else []
                expected = self._plain_logits(records)
                alone = [self._logits([row])[0] for row in rows]
        except Exception:  # any architecture may be loaded: the plain way takes what this one cannot
            logger.debug("the fast way cannot be taken", exc_info=True)
            return []
        return rows if all(map(outputs_match, alone, expected)) else []

    def _plain_logits(self, records: Sequence[Json]) -> list[Tensor]:
        parsed_params = self._task.parsed_params({})
        inputs = [part for value in records for part in self._task.prepare(value, parsed_params).inputs]
        rows = [self._task.forward([part], parsed_params, NullMonitor())[0] for part in inputs]
        return [self._way.part_of(row) for row in rows]
