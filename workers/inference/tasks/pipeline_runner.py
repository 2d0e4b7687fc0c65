"""The runner of the tasks that `transformers.pipeline` knows: its own steps, with the batching ours.

`pipe(list, batch_size=...)` is never called: there one bad record loses its batch, and batches come as the records
do. Here every record is prepared by itself, the prepared inputs are sorted by length and cut by a token budget, and
each record is finished as soon as its last input has run, so that no batch's scores outlive it.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import transformers
from torch import Tensor

from common.errors import RecordError
from common.json_codec import to_jsonable
from common.records import Failure, Json, Outcome
from common.tasks import find_task
from workers.inference.core.batches import Item, run_batches
from workers.inference.core.runner import RunMonitor
from workers.inference.core.samples import samples
from workers.inference.core.token_budget import TokenBudget
from workers.inference.models.batch_invariance import ensure_batch_invariance
from workers.inference.models.loader import ModelRunner, ModelSource, load_model, load_tokenizer
from workers.inference.tasks.classification import TokenClassification, ZeroShotClassification
from workers.inference.tasks.fill_mask import FillMask
from workers.inference.tasks.pipeline_task import (
    FeatureExtraction,
    PipelineParams,
    PipelineTask,
    PreparedRecord,
    RowOutput,
    TextClassification,
)
from workers.inference.tasks.table_question_answering import TableQuestionAnswering
from workers.inference.tasks.text_generation import TextGeneration
from workers.inference.text.tokenization import NO_TOKENS
from workers.inference.text.truncation import ModelInputs, token_count

logger = logging.getLogger(__name__)

_TASKS: Mapping[str, type[PipelineTask[Any]]] = {
    task.name: task
    for task in (
        FillMask,
        TextClassification,
        TokenClassification,
        ZeroShotClassification,
        TextGeneration,
        FeatureExtraction,
        TableQuestionAnswering,
    )
}


@dataclass(slots=True)
class _Work:
    """One record on its way: what it needs to run, and the rows that it has so far."""

    prepared: PreparedRecord
    rows: dict[int, RowOutput] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Part:
    """One input of one record."""

    work: _Work
    number: int

    @property
    def inputs(self) -> ModelInputs:
        return self.work.prepared.inputs[self.number]


class PipelineRunner(ModelRunner):
    """A `transformers` pipeline, its steps called one by one."""

    def __init__(self, task: str, model: Path | None, device: str, load_params: Mapping[str, Json]) -> None:
        """Load the model with the head of `task`, and its tokenizer.

        Raises:
            ModelError: as `load_model` and `load_tokenizer`; `no_mask_token`, for fill-mask.
        """
        chosen = _TASKS[find_task(task).name]
        source = ModelSource.of(task, model, load_params)
        self._model = load_model(
            getattr(transformers, chosen.auto_class), source, device, ignore_missing=chosen.ignore_missing
        )
        tokenizer = load_tokenizer(source)
        self.task = chosen.over(self._model, tokenizer, device)
        self.task.most_new_tokens = source.most_new_tokens
        self.budget = TokenBudget.of(device, generates=self.task.generates)
        if not self.task.batches:
            self.budget.items = 1
        ensure_batch_invariance(self.budget, self._model, self._trial_rows, self._trial)

    def output_type(self, params: Mapping[str, Json]) -> pa.DataType | None:
        """Return the Arrow type of the task's outputs, None where they travel as JSON."""
        return self.task.output_type

    def is_deterministic(self, params: Mapping[str, Json]) -> bool:
        """Return whether the task gives equal records equal outputs under these parameters.

        Raises:
            ModelError: `bad_param`.
        """
        return self.task.is_deterministic(self.task.parsed_params(params))

    def run(self, inputs: Sequence[Json], params: Mapping[str, Json], monitor: RunMonitor) -> list[Outcome]:
        """Return for each record what `pipeline(task)(record, **params)` gives, in order."""
        parsed_params = self.task.parsed_params(params)
        works: dict[int, _Work] = {}
        outcomes: dict[int, Outcome] = {}
        for position, value in enumerate(inputs):
            monitor.tick()
            prepared = self._prepared(value, parsed_params)
            if isinstance(prepared, Failure):
                outcomes[position] = Outcome(failure=prepared)
            else:
                works[position] = _Work(prepared)
        for items in self._groups(works, parsed_params):
            outcomes |= self._finished(items, parsed_params, monitor)
        return [outcomes[position] for position in range(len(inputs))]

    def _trial_rows(self) -> list[ModelInputs]:
        parsed_params = self.task.parsed_params({})
        found = [
            self._prepared(value, parsed_params) for value in samples(self.task.name, self.task.tokenizer.mask_token)
        ]
        return [inputs for prepared in found if isinstance(prepared, PreparedRecord) for inputs in prepared.inputs]

    def _trial(self, batch: Sequence[ModelInputs]) -> list[list[Tensor]]:
        return self.task.trial(batch, self.task.parsed_params({}))

    def _prepared(self, value: Json, parsed_params: PipelineParams) -> PreparedRecord | Failure:
        try:
            prepared = self.task.prepare(value, parsed_params)
        except RecordError as error:
            return Failure(error.code, error.message)
        except Exception as error:  # the boundary of untrusted input: tokenizers raise what they like, one record fails
            logger.debug("a record cannot be prepared", exc_info=True)
            return Failure("runner_error", f"{type(error).__name__}: {error}"[:2000])
        if any("input_ids" in inputs and not token_count(inputs) for inputs in prepared.inputs):
            return NO_TOKENS
        if self.task.limit is None:
            return prepared
        longest = max((token_count(inputs) for inputs in prepared.inputs), default=0)
        if longest > self.task.limit:
            return Failure("too_long", f"The input has {longest} tokens; the model takes {self.task.limit}.")
        return prepared

    def _groups(self, works: Mapping[int, _Work], parsed_params: PipelineParams) -> list[list[Item[_Part]]]:
        groups: dict[int, list[Item[_Part]]] = defaultdict(list)
        for position, work in works.items():
            for number, inputs in enumerate(work.prepared.inputs):
                item = Item(position, self.task.tokens(inputs, parsed_params), _Part(work, number))
                groups[self.task.group(inputs, parsed_params)].append(item)
        return [groups[key] for key in sorted(groups, reverse=True)]

    def _finished(
        self, items: Sequence[Item[_Part]], parsed_params: PipelineParams, monitor: RunMonitor
    ) -> dict[int, Outcome]:
        """Run these inputs; return the outcomes of the records that are done with them, by position."""

        def forward(parts: list[_Part]) -> list[Outcome | None]:
            rows = self.task.forward([part.inputs for part in parts], parsed_params, monitor)
            return [self._taken(part, row, parsed_params) for part, row in zip(parts, rows, strict=True)]

        outcomes: dict[int, Outcome] = {}
        budget = self.task.budget(self.budget, parsed_params)
        for item, result in zip(items, run_batches(items, forward, budget, monitor), strict=True):
            if isinstance(result, Failure):
                outcomes[item.position] = Outcome(failure=result)
            elif result is not None:
                outcomes[item.position] = result
        return outcomes

    def _taken(self, part: _Part, row: RowOutput, parsed_params: PipelineParams) -> Outcome | None:
        """Keep a row; return the outcome of its record if it was the last."""
        work, wanted = part.work, len(part.work.prepared.inputs)
        work.rows[part.number] = row
        if len(work.rows) < wanted:
            return None
        rows = [work.rows.pop(number) for number in range(wanted)]
        try:
            output = self.task.finish(rows, work.prepared, parsed_params)
            output = output if self.task.output_type else to_jsonable(output)
        except Exception as error:  # an error here must not make the batch run again: one record fails
            logger.debug("a record cannot be finished", exc_info=True)
            return Outcome(failure=Failure("runner_error", f"{type(error).__name__}: {error}"[:2000]))
        return Outcome(output, truncated=work.prepared.truncated)
