"""Encoding the outcomes of a chunk, in the type that is declared for them.

Here the outputs of transformers become what users get (`common.task_outputs`): once, and before anything is stored.
Outputs that are not of the declared type fail their records.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from common.errors import PayloadError
from common.jobs import JobSpec
from common.payloads.codec import count, encode_outcomes
from common.records import Counts, Failure, Json, Outcome, Record
from common.tasks import declared_output
from workers.device.server.run_chunk import runner_fault
from workers.inference.core.runner import Runner

logger = logging.getLogger(__name__)

#: What conversions, Arrow and the codec raise over an output that is not of the declared type.
_ENCODE_ERRORS = (
    *(TypeError, ValueError, LookupError, AttributeError, StopIteration, OverflowError, RecursionError, MemoryError),
    pa.ArrowException,
)


@dataclass(frozen=True, slots=True)
class OutputEncoding:
    """How the outputs of a job are encoded."""

    type: pa.DataType | None = None  #: None as JSON text
    convert: Callable[[Json], Json] | None = None  #: from what the runner returns, to values of the type

    @classmethod
    def of(cls, runner: Runner, spec: JobSpec, params: Mapping[str, Json]) -> "OutputEncoding":
        """Return the encoding that the job's task declares; what its runner knows of the type counts more.

        Raises:
            ModelError: `bad_param`.
        """
        form, own = declared_output(spec), runner.output_type(params)
        if form is None:
            return cls(own)
        return cls(own if own is not None else form.arrow_type(), form.convert)


def encode_chunk(
    records: Mapping[int, Record], outcomes: Sequence[Outcome], outputs: OutputEncoding
) -> tuple[bytes, Counts]:
    """Return the payload of the outcomes of `records`, and their counts.

    Outputs that are not of the declared type fail their records.
    """
    positions, ids = list(records), [record.id for record in records.values()]

    def encode(some: Sequence[Outcome]) -> tuple[bytes, Counts]:
        return encode_outcomes(positions, ids, some, outputs.type), count(some)

    try:
        return encode([_converted(outcome, outputs) for outcome in outcomes])
    except PayloadError as error:
        failure = Failure("output_too_large", str(error))
    except _ENCODE_ERRORS as error:
        logger.warning("outputs that cannot be encoded: %s", error)
        outcomes = [_encodable(outcome, outputs) for outcome in outcomes]
        try:
            return encode(outcomes)
        except (PayloadError, *_ENCODE_ERRORS) as again:
            failure = Failure("output_too_large", str(again))
    return encode([Outcome(failure=outcome.failure or failure) for outcome in outcomes])


def _converted(outcome: Outcome, outputs: OutputEncoding) -> Outcome:
    if outcome.failure is not None or outputs.convert is None:
        return outcome
    return replace(outcome, output=outputs.convert(outcome.output))


def _encodable(outcome: Outcome, outputs: OutputEncoding) -> Outcome:
    """Return the outcome, its output converted, or its failure if that cannot be encoded."""
    try:
        outcome = _converted(outcome, outputs)
        encode_outcomes([0], [0], [outcome], outputs.type)
    except PayloadError:
        return outcome  # too large, but of the right type
    except _ENCODE_ERRORS as error:
        return runner_fault(f"an output that cannot be encoded ({type(error).__name__}: {str(error)[:500]})")
    return outcome
