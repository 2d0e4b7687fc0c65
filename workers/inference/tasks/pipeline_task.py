"""What each task of `transformers.pipeline` asks for: which head, which parameters, how a record is read, cut and run.

A task calls the pipeline's own `preprocess`, `forward` and `postprocess` and no other part of it. It knows records
one at a time and batches as they come; which records share a batch is for `workers.inference.tasks.pipeline_runner`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import pyarrow as pa
from torch import Tensor
from transformers import pipelines as hf

from common.errors import ModelError, RecordError
from common.params import check_params
from common.records import Json
from common.task_params import TASK_PARAMS
from common.tasks import TASKS
from workers.inference.core.runner import NullMonitor, RunMonitor
from workers.inference.core.token_budget import TokenBudget
from workers.inference.text.collate import join, take_row
from workers.inference.text.fields import parse_fields
from workers.inference.text.tokenization import check_text
from workers.inference.text.truncation import ModelInputs, input_token_limit, token_count, truncate_pair

#: What one row of a batch gave, in the shape that the pipeline's `postprocess` takes.
RowOutput = Any


@dataclass(frozen=True, slots=True)
class PipelineParams:
    """A job's parameters, as the pipeline sorts them."""

    params: Mapping[str, Json]
    preprocess: Mapping[str, Any]
    forward: Mapping[str, Any]
    postprocess: Mapping[str, Any]


@dataclass(slots=True)
class PreparedRecord:
    """One record, ready to run: one input, or several for a pipeline that works in chunks."""

    inputs: list[ModelInputs]
    truncated: bool = False
    postprocess: Mapping[str, Any] = field(default_factory=dict)


S = TypeVar("S", bound=PipelineParams)


class PipelineTask(ABC, Generic[S]):
    """One task over one loaded pipeline."""

    name: ClassVar[str]
    pipeline_class: ClassVar[Any]
    auto_class: ClassVar[str]
    #: Weights that may be missing, as patterns.
    ignore_missing: ClassVar[tuple[str, ...]] = ()
    #: Whether it takes a forward pass for each token that comes out: too long for trials of the size of batches.
    generates: ClassVar[bool] = False
    #: The outputs that `postprocess` needs, and those of them that have a row for each token.
    kept: ClassVar[tuple[str, ...]] = ("logits",)
    per_token: ClassVar[tuple[str, ...]] = ()
    #: Tokens that may be generated for one record; None for no limit.
    most_new_tokens: int | None = None
    #: Arrow type of an output, None where it travels as JSON.
    output_type: ClassVar[Any] = None

    @classmethod
    def over(cls, model: Any, tokenizer: Any, device: str) -> "PipelineTask[S]":
        """Return the task over a pipeline of this model and tokenizer.

        Raises:
            ModelError: `no_mask_token`, the tokenizer knows no mask and the task needs one.
        """
        try:
            pipe = cls.pipeline_class(model=model, tokenizer=tokenizer, task=cls.name, device=device)
        except hf.PipelineException as error:
            raise ModelError("no_mask_token", f"This model does not do {cls.name}: {error}") from error
        return cls(pipe)

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.tokenizer = pipe.tokenizer
        self.limit = input_token_limit(pipe.model, pipe.tokenizer)
        if self.limit is not None:  # what the pipeline itself cuts to, where it cuts
            self.tokenizer.model_max_length = self.limit
        self.pad_id = self._pad_id()

    @property
    def batches(self) -> bool:
        """Whether several records may share a forward pass at all."""
        return True

    @abstractmethod
    def parsed_params(self, params: Mapping[str, Json]) -> S:
        """Return the job's parameters, checked and sorted.

        Raises:
            ModelError: `bad_param`.
        """

    def prepare(self, value: Json, parsed_params: S) -> PreparedRecord:
        """Return the record ready to run.

        Raises:
            RecordError: it cannot be done, for a reason that the user can mend.
        """
        text = check_text(parse_fields(TASKS[self.name], value)["text"])
        return self._fitted(text, parsed_params)

    def is_deterministic(self, parsed_params: S) -> bool:
        """Return whether equal records get equal outputs."""
        return True

    def group(self, inputs: ModelInputs, parsed_params: S) -> int:
        """Return a number: only inputs with the same one may share a batch.

        Where the model is not told which tokens are padding, that is the length.
        """
        return 0 if "attention_mask" in inputs else token_count(inputs)

    def tokens(self, inputs: ModelInputs, parsed_params: S) -> int:
        """Return how many tokens the input will take at most."""
        return token_count(inputs)

    def budget(self, usual: TokenBudget, parsed_params: S) -> TokenBudget:
        """Return how much a batch may hold under these parameters."""
        return usual

    def forward(self, batch: Sequence[ModelInputs], parsed_params: S, monitor: RunMonitor) -> list[RowOutput]:
        """Run one batch; return one row for each input, in order."""
        outputs = self.pipe.forward(join(batch, self.pad_id), **parsed_params.forward)
        return self._rows(outputs, [token_count(inputs) for inputs in batch])

    def trial(self, batch: Sequence[ModelInputs], parsed_params: S) -> list[list[Tensor]]:
        """Return for each input of a batch all numbers that the model gives for it."""
        return [_numbers(row) for row in self.forward(batch, parsed_params, NullMonitor())]

    def finish(self, rows: Sequence[RowOutput], prepared: PreparedRecord, parsed_params: S) -> Json:
        """Return a record's output, from the rows of its inputs."""
        return self.pipe.postprocess(rows[0], **{**parsed_params.postprocess, **prepared.postprocess})

    def _rows(self, outputs: Any, lengths: Sequence[int]) -> list[RowOutput]:
        return [
            {key: take_row(outputs[key], number, length if key in self.per_token else None) for key in self.kept}
            for number, length in enumerate(lengths)
        ]

    def _sorted(self, params: Mapping[str, Json]) -> PipelineParams:
        """Have the pipeline sort checked parameters for its steps."""
        try:
            before, forward, after = self.pipe._sanitize_parameters(**params)
        except (ValueError, TypeError, KeyError) as error:
            raise ModelError("bad_param", f"{self.name} does not take these parameters: {error}") from error
        pipe = self.pipe
        return PipelineParams(
            params,
            {**pipe._preprocess_params, **before},
            {**pipe._forward_params, **forward},
            {**pipe._postprocess_params, **after},
        )

    def _fitted(self, value: Json, parsed_params: S) -> PreparedRecord:
        """Prepare `value`, from the end cut to what the model takes, or to the job's own `max_length`."""
        params = dict(parsed_params.preprocess)
        truncation, own = params.pop("truncation", True), params.pop("max_length", None)
        found = self.pipe.preprocess(value, **params)
        inputs = dict(found)
        limit = min(filter(None, (self.limit, own if truncation else None)), default=None)
        if limit is None or token_count(inputs) <= limit or not truncation:
            return PreparedRecord([inputs])
        if isinstance(value, dict) and self.tokenizer.is_fast and truncation in (True, "longest_first"):
            kept = truncate_pair(found.sequence_ids(0), limit, self.tokenizer.truncation_side)
            return PreparedRecord([{name: values[:, kept] for name, values in inputs.items()}], truncated=True)
        cut = self.pipe.preprocess(value, **params, truncation=truncation, max_length=limit)
        return PreparedRecord([dict(cut)], truncated=True)

    def model_pad_id(self) -> int | None:
        """Return the token that the model takes for padding, None where it knows none."""
        found: int | None = getattr(self.pipe.model.config.get_text_config(), "pad_token_id", None)
        return found

    def _pad_id(self) -> int:
        ids = (self.model_pad_id(), self.tokenizer.pad_token_id)
        return next((number for number in ids if number is not None and number >= 0), 0)


class PlainTask(PipelineTask[PipelineParams]):
    """A task whose parameters are the pipeline's, and no more."""

    def parsed_params(self, params: Mapping[str, Json]) -> PipelineParams:
        """Return the job's parameters, checked and sorted.

        Raises:
            ModelError: `bad_param`.
        """
        return self._sorted(check_params(self.name, TASK_PARAMS[self.name], params))


class TextClassification(PlainTask):
    """A label and its score for a text or a pair of texts: always a list, as `pipeline` gives for one text."""

    name = "text-classification"
    pipeline_class = hf.TextClassificationPipeline
    auto_class = "AutoModelForSequenceClassification"

    @property
    def batches(self) -> bool:
        """Decoders find a text's last token by the padding, and refuse batches where they know no padding."""
        return self.model_pad_id() is not None

    def prepare(self, value: Json, parsed_params: PipelineParams) -> PreparedRecord:
        """Return the text, or the pair, cut from the end."""
        fields = parse_fields(TASKS[self.name], value)
        if "text_pair" not in fields:
            return self._fitted(check_text(fields["text"]), parsed_params)
        pair = {"text": check_text(fields["text"]), "text_pair": check_text(fields["text_pair"], "text_pair")}
        return self._fitted(pair, parsed_params)

    def finish(self, rows: Sequence[RowOutput], prepared: PreparedRecord, parsed_params: PipelineParams) -> Json:
        """Return a list of labels with their scores."""
        output = super().finish(rows, prepared, parsed_params)
        return output if "top_k" in parsed_params.params else [output]


class FeatureExtraction(PlainTask):
    """The hidden states of every token, the batch dimension of `pipeline` included."""

    name = "feature-extraction"
    pipeline_class = hf.FeatureExtractionPipeline
    auto_class = "AutoModel"
    ignore_missing = (r"(^|\.)pooler\.",)
    output_type = pa.list_(pa.list_(pa.list_(pa.float32())))

    def _rows(self, outputs: Any, lengths: Sequence[int]) -> list[RowOutput]:
        states = outputs[0]
        return [(take_row(states, number, length),) for number, length in enumerate(lengths)]


def _numbers(row: RowOutput) -> list[Tensor]:
    """Return the tensors of floats in a row, whatever its shape."""
    if isinstance(row, Tensor):
        return [row] if row.is_floating_point() else []
    parts = row.values() if isinstance(row, Mapping) else row if isinstance(row, list | tuple) else ()
    return [number for part in parts for number in _numbers(part)]


def record_params(
    task: PipelineTask[Any], fields: Mapping[str, Json]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the parameters that a record brings itself, sorted for the steps of the pipeline.

    Raises:
        RecordError: `wrong_type`, a value that the parameter does not take.
    """
    declared = TASK_PARAMS[task.name]
    params = {name: value for name, value in fields.items() if name in declared}
    if not params:
        return {}, {}, {}
    try:
        params = check_params(task.name, declared, params)
        sorted_params: tuple[dict[str, Any], dict[str, Any], dict[str, Any]] = task.pipe._sanitize_parameters(**params)
    except (ModelError, ValueError, TypeError, KeyError) as error:
        raise RecordError("wrong_type", f"The record's own parameters: {error}") from error
    return sorted_params
