"""What the tasks that generate text share: constraints, log-probabilities, and details of a text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from common.errors import ModelError, RecordError
from common.output_constraints import KINDS, ConstrainedInput, constraint_of
from common.records import Json
from workers.inference.core.runner import RunMonitor
from workers.inference.generation.constrained_decoding import CompiledConstraint, ConstraintCompiler
from workers.inference.generation.logprobs import check_logprobs, recorded_logprobs, token_texts
from workers.inference.generation.new_text import NewText
from workers.inference.generation.token_callback import token_callbacks
from workers.inference.tasks.pipeline_task import PipelineParams, RowOutput
from workers.inference.text.truncation import ModelInputs

#: Parameters that no pipeline has.
OWN_PARAMS = frozenset({"chat", "logprobs", "seed", "system", "usage", *KINDS})


@dataclass(frozen=True, slots=True)
class TextParams(PipelineParams):
    """A job's parameters, combined with the model's own configuration."""

    config: Any = None  #: the generation configuration that `generate` will use
    seed: int | None = None
    chat: bool = False  #: whether a plain text is asked as a user's message
    constraint: CompiledConstraint | None = None  #: what texts must be, unless a record has a constraint of its own
    usage: bool = False  #: whether outputs include token counts and finish reasons
    logprobs: int | None = None  #: how many of the most likely tokens to name beside each; None: no log-probabilities


@dataclass(frozen=True, slots=True)
class Written:
    """What `generate` wrote for one record."""

    texts: Sequence[NewText]
    constraint: CompiledConstraint | None = None
    logprobs: Sequence[Json] = ()  #: of each text, if the job asks for them


class TextWriter:
    """Writes texts with one model, as a job's parameters and the records' own constraints ask.

    Args:
        model: with a head for generation.
        tokenizer: of the model.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._compiler = ConstraintCompiler(tokenizer, model.config.get_text_config().vocab_size)
        self._text_of = token_texts(tokenizer)

    def own_params(self, params: Mapping[str, Json], config: Any) -> dict[str, Any]:
        """Return the fields of `TextParams` that these parameters of a job set.

        Raises:
            ModelError: `bad_param`.
        """
        constraint, top = constraint_of(params), params.get("logprobs")
        check_logprobs(top, config)
        return {
            "constraint": self._compiler.compile(constraint, config) if constraint else None,
            "usage": params.get("usage", False),
            "logprobs": top,
        }

    def take_constraint(self, value: Json, params: TextParams) -> tuple[Json, CompiledConstraint | None]:
        """Return a record's input, and what its texts must be.

        Raises:
            RecordError: `bad_param`, the record's own constraint cannot be followed.
        """
        if not isinstance(value, ConstrainedInput):
            return value, params.constraint
        try:
            return value.input, self._compiler.compile(value.constraint, params.config)
        except ModelError as error:
            raise RecordError(error.code, error.message) from error

    def generate(
        self,
        call: Callable[[dict[str, Any]], Mapping[str, Any]],
        batch: Sequence[ModelInputs],
        params: TextParams,
        monitor: RunMonitor,
    ) -> tuple[Mapping[str, Any], list[Written]]:
        """Return what the pipeline returned for a batch, and what was written for each record of it.

        Args:
            call: the pipeline's forward pass, given further arguments of `generate`.
            batch: the records' inputs, each with its `constraint` and, if the job has a seed, its `record_seed`.
            params: of the job.
            monitor: called at every token.
        """
        seeds = None if params.seed is None else [inputs["record_seed"] for inputs in batch]
        constraints = [inputs["constraint"] for inputs in batch]
        with recorded_logprobs(self._model, params.logprobs) as recorder:
            outputs = call(token_callbacks(params.config, monitor, seeds, constraints, recorder))
        prompt = outputs["input_ids"].shape[1]
        texts = [self._read(copies, prompt, params.config) for copies in _copies(outputs["generated_sequence"])]
        logprobs: list[Any] = []
        if recorder:
            logprobs = recorder.rows(self._text_of, [one.tokens[: one.length] for copies in texts for one in copies])
        return outputs, [
            Written(copies, constraint, logprobs[number * len(copies) : (number + 1) * len(copies)])
            for number, (copies, constraint) in enumerate(zip(texts, constraints, strict=True))
        ]

    def _read(self, copies: Tensor, prompt: int, config: Any) -> list[NewText]:
        return [NewText.read(copy[prompt:].tolist(), config, self._tokenizer) for copy in copies]


def _copies(sequences: Tensor) -> Tensor:
    """Return token ids of shape (records, copies, tokens); a pipeline may leave the second one out."""
    return sequences if sequences.ndim == 3 else sequences[:, None]


def constrained_texts(written: Written, params: TextParams) -> list[dict[str, Json]] | None:
    """Return the texts of a record with a constraint, as a pipeline returns them; None if it has none.

    Raises:
        RecordError: `incomplete_output`, one of them does not meet the job's constraint.
    """
    constraint = written.constraint
    if constraint is None:
        return None
    complete = params.constraint is not None
    return [{"generated_text": text.under(constraint, complete=complete)} for text in written.texts]


def with_details(row: RowOutput, texts: Sequence[Json], params: TextParams) -> list[dict[str, Json]]:
    """Return the texts of a record, each with the details that the job asks for."""
    written: Written = row["written"]
    found = [dict(text) for text in texts]
    for number, (text, new) in enumerate(zip(found, written.texts, strict=True)):
        if params.usage:
            text["prompt_tokens"] = int(row["input_ids"].shape[1])
            text["completion_tokens"] = len(new.tokens)
            text["finish_reason"] = new.finish_reason
        if params.logprobs is not None:
            text["logprobs"] = written.logprobs[number]
    return found
