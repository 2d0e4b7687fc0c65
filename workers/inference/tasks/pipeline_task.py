"""The base of the tasks that run a `transformers` pipeline: parameters, preparation, forward pass and output.

A task calls the pipeline's own `preprocess`, `forward` and `postprocess`, and nothing else of it. It sees one record
or one batch at a time; `workers.inference.tasks.pipeline_runner` decides which records share a batch.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar, cast

from torch import Tensor
from transformers import pipelines as hf
from transformers.pipelines.base import ChunkPipeline

from common.errors import ModelError, RecordError
from common.params import check_params
from common.records import Failure, Json, Outcome
from common.task_params import TASK_PARAMS
from workers.inference.core.runner import NullMonitor, RunMonitor
from workers.inference.core.token_budget import TokenBudget
from workers.inference.text.collate import collate, take_row
from workers.inference.text.tokenization import NO_TOKENS
from workers.inference.text.truncation import ModelInputs, input_token_limit, token_count
from workers.models.load_options import DEFAULT_OPTIONS

logger = logging.getLogger(__name__)

#: What one row of a batch gave, in the form that the pipeline's `postprocess` takes.
RowOutput = Any


@dataclass(frozen=True, slots=True)
class PipelineParams:
    """A job's parameters, split by the step of the pipeline that takes them."""

    params: Mapping[str, Json]
    preprocess: Mapping[str, Any]
    forward: Mapping[str, Any]
    postprocess: Mapping[str, Any]


@dataclass(slots=True)
class PreparedRecord:
    """One record on its way through the model."""

    inputs: Sequence[Any] = ()  #: one forward pass each: `ModelInputs`, or `TokenizedText` for `forward_batch`
    truncated: bool = False
    texts: Sequence[tuple[str, str | None]] = ()  #: of an encoder task: a text or a pair for each forward pass
    preprocess: Mapping[str, Any] = field(default_factory=dict)  #: parameters, with the record's own
    postprocess: Mapping[str, Any] = field(default_factory=dict)  #: the record's own parameters
    rows: dict[int, RowOutput] = field(default_factory=dict)  #: outputs so far, by the number of the input


P = TypeVar("P", bound=PipelineParams)


class PipelineTask(ABC, Generic[P]):
    """One task over one loaded pipeline."""

    name: ClassVar[str]
    pipeline_class: ClassVar[Any]
    auto_class: ClassVar[str]
    #: Regular expressions of weights that may be missing.
    ignore_missing: ClassVar[tuple[str, ...]] = ()
    #: Whether each new token takes a forward pass: batches are then too slow to calibrate.
    generates: ClassVar[bool] = False
    #: The outputs that `postprocess` needs, and those of them that have a row for each token.
    kept: ClassVar[tuple[str, ...]] = ("logits",)
    per_token: ClassVar[tuple[str, ...]] = ()
    #: Limit on the tokens generated for one record.
    max_new_tokens: int = DEFAULT_OPTIONS.max_new_tokens
    #: Whether `postprocess` returns values of Python alone; else numpy's and torch's among them are converted.
    gives_plain_values: ClassVar[bool] = False

    @classmethod
    def from_model(cls, model: Any, tokenizer: Any, device: str) -> "PipelineTask[P]":
        """Return the task over a pipeline of this model and tokenizer.

        Raises:
            ModelError: `no_mask_token`, the task needs a mask token and the tokenizer has none.
        """
        try:
            pipe = cls.pipeline_class(model=model, tokenizer=tokenizer, task=cls.name, device=device)
        except hf.PipelineException as error:
            raise ModelError("no_mask_token", f"This model cannot do {cls.name}: {error}") from error
        return cls(pipe)

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.tokenizer = pipe.tokenizer
        self.limit = input_token_limit(pipe.model, pipe.tokenizer)
        if self.limit is not None:  # the length that the pipeline itself truncates to
            self.tokenizer.model_max_length = self.limit

    @property
    def can_batch(self) -> bool:
        """Whether records may share a forward pass at all."""
        return True

    def parse_params(self, params: Mapping[str, Json]) -> P:
        """Return the job's parameters, checked and split by step.

        Raises:
            ModelError: `bad_param`.
        """
        return cast("P", self._split_params(check_params(self.name, TASK_PARAMS[self.name], params)))

    @abstractmethod
    def prepare(self, value: Json, params: P) -> PreparedRecord:
        """Return the record, ready for the pipeline's `forward`.

        Raises:
            RecordError: the record cannot run, for a reason that the user can fix.
        """

    def is_deterministic(self, params: P) -> bool:
        """Return whether equal records get equal outputs."""
        return True

    def group(self, inputs: ModelInputs, params: P) -> int:
        """Return a number that inputs must share to share a batch: their length where the model gets no mask."""
        return 0 if "attention_mask" in inputs else token_count(inputs)

    def tokens(self, inputs: ModelInputs, params: P) -> int:
        """Return how many tokens the input takes at most."""
        return token_count(inputs)

    def budget(self, usual: TokenBudget, group: int) -> TokenBudget:
        """Return the budget of a batch of inputs of this group."""
        return usual

    def forward(self, batch: Sequence[ModelInputs], params: P, monitor: RunMonitor) -> list[RowOutput]:
        """Run one batch; return one row for each input, in order."""
        outputs = self.pipe.forward(collate(batch, self.pad_id), **params.forward)
        return self._rows(outputs, [token_count(inputs) for inputs in batch])

    def trial(self, batch: Sequence[ModelInputs], params: P) -> list[list[Tensor]]:
        """Return all floating-point outputs for each input of a batch."""
        return [_float_tensors(row) for row in self.forward(batch, params, NullMonitor())]

    def postprocess(self, rows: Sequence[RowOutput], record: PreparedRecord, params: P) -> Json:
        """Return a record's output from the rows of its inputs."""
        taken = list(rows) if isinstance(self.pipe, ChunkPipeline) else rows[0]
        return self.pipe.postprocess(taken, **{**params.postprocess, **record.postprocess})

    @property
    def model_pad_id(self) -> int | None:
        """The token that the model takes for padding, None if it has none."""
        found: int | None = getattr(self.pipe.model.config.get_text_config(), "pad_token_id", None)
        return found

    @property
    def pad_id(self) -> int:
        """The token that batches are padded with."""
        ids = (self.model_pad_id, self.tokenizer.pad_token_id)
        return next((number for number in ids if number is not None and number >= 0), 0)

    def record_params(self, fields: Mapping[str, Json]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the parameters among a record's fields, those for `preprocess` and those for `postprocess`.

        Raises:
            RecordError: `wrong_type`, a value that the parameter does not take.
        """
        declared = TASK_PARAMS[self.name]
        params = {name: value for name, value in fields.items() if name in declared}
        if not params:
            return {}, {}
        try:
            before, _, after = self.pipe._sanitize_parameters(**check_params(self.name, declared, params))
        except (ModelError, ValueError, TypeError, KeyError) as error:
            raise RecordError("wrong_type", f"Wrong parameters in the record: {error}") from error
        return before, after

    def zero_shot_params(self, fields: Mapping[str, Json], params: P) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what `record_params` does, the job's own filled in and the candidate labels as a list.

        Raises:
            RecordError: as `record_params`; `missing_field`, there are no labels.
        """
        before, after = self.record_params(fields)
        before = {**params.preprocess, **before}
        labels = fields.get("candidate_labels", params.params.get("candidate_labels"))
        if labels is None:
            raise RecordError(
                "missing_field", f"{self.name} needs candidate_labels, in the record or as -p candidate_labels=a,b."
            )
        if isinstance(labels, str):
            labels = [label.strip() for label in labels.split(",") if label.strip()]
        return {**before, "candidate_labels": labels}, after

    def _rows(self, outputs: Any, lengths: Sequence[int]) -> list[RowOutput]:
        return [
            {key: take_row(outputs[key], number, length if key in self.per_token else None) for key in self.kept}
            for number, length in enumerate(lengths)
        ]

    def _split_params(self, params: Mapping[str, Json]) -> PipelineParams:
        """Return checked parameters, split by the pipeline itself."""
        pipe = self.pipe
        try:
            before, forward, after = pipe._sanitize_parameters(**params)
        except (ValueError, TypeError, KeyError) as error:
            raise ModelError("bad_param", f"{self.name} does not take these parameters: {error}") from error
        return PipelineParams(
            params,
            {**pipe._preprocess_params, **before},
            {**pipe._forward_params, **forward},
            {**pipe._postprocess_params, **after},
        )


def prepare_record(task: PipelineTask[P], value: Json, params: P) -> PreparedRecord | Failure:
    """Return a record, ready to run, or why it cannot."""
    try:
        record = task.prepare(value, params)
    except RecordError as error:
        return Failure(error.code, error.message)
    except Exception as error:  # untrusted input: tokenizers may raise anything, and one record fails
        logger.debug("a record cannot be prepared", exc_info=True)
        return Failure.from_exception("runner_error", error)
    lengths = [token_count(inputs) for inputs in record.inputs if "input_ids" in inputs]
    if not all(lengths):
        return NO_TOKENS
    if task.limit is not None and max(lengths, default=0) > task.limit:
        return Failure("too_long", f"The input has {max(lengths)} tokens; the model takes {task.limit}.")
    return record


def finish_record(record: PreparedRecord, make_output: Callable[[], Json]) -> Outcome:
    """Return the outcome of a record that has run."""
    try:
        output = make_output()
    except RecordError as error:
        return Outcome(failure=Failure(error.code, error.message))
    except Exception as error:  # an error here must not make the batch run again: one record fails
        logger.debug("a record cannot be finished", exc_info=True)
        return Outcome(failure=Failure.from_exception("runner_error", error))
    return Outcome(output, truncated=record.truncated)


def _float_tensors(row: RowOutput) -> list[Tensor]:
    """Return the floating-point tensors in a row, whatever its form."""
    if isinstance(row, Tensor):
        return [row] if row.is_floating_point() else []
    parts = row.values() if isinstance(row, Mapping) else row if isinstance(row, list | tuple) else ()
    return [tensor for part in parts for tensor in _float_tensors(part)]
