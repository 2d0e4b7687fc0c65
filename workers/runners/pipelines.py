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

import transformers

from common.encoder import plain
from common.errors import RecordError
from common.tasks import find_task
from common.values import Failure, Json, Outcome
from workers.runners.base import Runner, Watch
from workers.runners.batching import Item, TokenBudget, run_batches
from workers.runners.chunk_tasks import TokenClassification, ZeroShotClassification
from workers.runners.generation import TextGeneration
from workers.runners.loading import load_model, load_tokenizer, memory_bytes
from workers.runners.options import model_directory
from workers.runners.pipeline_tasks import (
    FeatureExtraction,
    FillMask,
    PipelineTask,
    Prepared,
    Row,
    Settings,
    TextClassification,
)
from workers.runners.table_task import TableQuestionAnswering
from workers.runners.truncation import Inputs, length_of

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

    prepared: Prepared
    rows: dict[int, Row] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Part:
    """One input of one record."""

    work: _Work
    number: int

    @property
    def inputs(self) -> Inputs:
        return self.work.prepared.inputs[self.number]


class PipelineRunner(Runner):
    """A `transformers` pipeline, its steps called one by one."""

    def __init__(self, task: str, model: Path | None, device: str, load_params: Mapping[str, Json]) -> None:
        """Load the model with the head of `task`, and its tokenizer.

        Raises:
            ModelError: as `load_model` and `load_tokenizer`; `no_mask_token`, for fill-mask.
        """
        chosen = _TASKS[find_task(task).name]
        directory = model_directory(task, model)
        self._model = load_model(
            getattr(transformers, chosen.auto_class),
            directory,
            load_params.get("dtype"),
            device,
            ignore_missing=chosen.ignore_missing,
        )
        tokenizer = load_tokenizer(directory)
        self._task = chosen.over(self._model, tokenizer, device)
        self._budget = TokenBudget.of(device)
        if not self._task.batches:
            self._budget.items = 1

    def run(self, inputs: Sequence[Json], params: Mapping[str, Json], watch: Watch) -> list[Outcome]:
        """Return for each record what `pipeline(task)(record, **params)` gives, in order."""
        settings = self._task.settings(params)
        works: dict[int, _Work] = {}
        outcomes: dict[int, Outcome] = {}
        for position, value in enumerate(inputs):
            watch.tick()
            prepared = self._prepared(value, settings)
            if isinstance(prepared, Failure):
                outcomes[position] = Outcome(failure=prepared)
            else:
                works[position] = _Work(prepared)
        for items in self._groups(works, settings):
            outcomes |= self._finished(items, settings, watch)
        return [outcomes[position] for position in range(len(inputs))]

    def memory_bytes(self) -> int:
        """Return the bytes of the model's parameters and buffers."""
        return memory_bytes(self._model)

    def _prepared(self, value: Json, settings: Settings) -> Prepared | Failure:
        try:
            prepared = self._task.prepare(value, settings)
        except RecordError as error:
            return Failure(error.code, error.message)
        except Exception as error:  # the boundary of untrusted input: tokenizers raise what they like, one record fails
            logger.debug("a record cannot be prepared", exc_info=True)
            return Failure("runner_error", f"{type(error).__name__}: {error}"[:2000])
        longest = max((length_of(inputs) for inputs in prepared.inputs), default=0)
        if self._task.limit is not None and longest > self._task.limit:
            return Failure("too_long", f"The input has {longest} tokens; the model takes {self._task.limit}.")
        return prepared

    def _groups(self, works: Mapping[int, _Work], settings: Settings) -> list[list[Item[_Part]]]:
        groups: dict[int, list[Item[_Part]]] = defaultdict(list)
        for position, work in works.items():
            for number, inputs in enumerate(work.prepared.inputs):
                item = Item(position, self._task.tokens(inputs, settings), _Part(work, number))
                groups[self._task.group(inputs, settings)].append(item)
        return [groups[key] for key in sorted(groups, reverse=True)]

    def _finished(self, items: Sequence[Item[_Part]], settings: Settings, watch: Watch) -> dict[int, Outcome]:
        """Run these inputs; return the outcomes of the records that are done with them, by position."""

        def forward(parts: list[_Part]) -> list[Outcome | None]:
            rows = self._task.forward([part.inputs for part in parts], settings, watch)
            return [self._taken(part, row, settings) for part, row in zip(parts, rows, strict=True)]

        outcomes: dict[int, Outcome] = {}
        for item, result in zip(items, run_batches(items, forward, self._budget, watch), strict=True):
            if isinstance(result, Failure):
                outcomes[item.position] = Outcome(failure=result)
            elif result is not None:
                outcomes[item.position] = result
        return outcomes

    def _taken(self, part: _Part, row: Row, settings: Settings) -> Outcome | None:
        """Keep a row; return the outcome of its record if it was the last."""
        work, wanted = part.work, len(part.work.prepared.inputs)
        work.rows[part.number] = row
        if len(work.rows) < wanted:
            return None
        rows = [work.rows.pop(number) for number in range(wanted)]
        try:
            output = plain(self._task.finish(rows, work.prepared, settings))
        except Exception as error:  # an error here must not make the batch run again: one record fails
            logger.debug("a record cannot be finished", exc_info=True)
            return Outcome(failure=Failure("runner_error", f"{type(error).__name__}: {error}"[:2000]))
        return Outcome(output, truncated=work.prepared.truncated)
