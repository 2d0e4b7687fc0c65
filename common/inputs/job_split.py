"""Job splits: chunks whose records are the results of a chunk of another job.

The payload of such a chunk is a `JobSplit`, a line of JSON, instead of the records: the other job may not have run yet.
"""

from dataclasses import dataclass
from typing import Annotated

import msgspec

from common.errors import PayloadError
from common.inputs.record_builder import RecordBuilder
from common.inputs.sources import Source
from common.jobs import JOB_ID
from common.tasks import Task
from common.template import Template
from common.validation import pattern

#: Results of results of results: jobs that are read to make one record.
MAX_DEPTH = 50

_Count = Annotated[int, msgspec.Meta(ge=0)]


class JobSplit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The results of one chunk of a job, and how they become records."""

    job: Annotated[str, pattern(JOB_ID.pattern, "twelve hexadecimal digits")]
    chunk: _Count
    output_as: str  #: the name of the column that the job's outputs become
    records: Annotated[int, msgspec.Meta(gt=0)] | None = None  #: how many, from the first; None: all
    column: str | None = None
    id_column: str | None = None

    def encode(self) -> bytes:
        """Return the payload that `decode` reads."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> "JobSplit":
        """Return the split in that payload, which is untrusted.

        Raises:
            PayloadError: it is not a valid split.
        """
        try:
            return msgspec.json.decode(data, type=cls)
        except (ValueError, RecursionError) as error:  # of msgspec, or text that is not UTF-8
            raise PayloadError(f"not a job split: {error}") from error


def is_job_split(payload: bytes) -> bool:
    """Whether a payload is a job split rather than records or a file split, which names its source first."""
    return payload.startswith(b'{"job":')


@dataclass(frozen=True, slots=True)
class _JobSource(Source):
    """The results of a job as a source; messages number its records in their chunk."""

    def location(self, number: int) -> str:
        return f"record {number} of a chunk of {self.name}"


def results_builder(
    job_id: str,
    task: Task,
    column: str | None = None,
    id_column: str | None = None,
    template: Template | None = None,
) -> RecordBuilder:
    """Return the builder of records from the results of a job: rows of a table, but nothing is kept."""
    source = _JobSource(f"job:{job_id}", "jsonl")
    return RecordBuilder(source, task, column, id_column, multiple_inputs=False, tabular=True, template=template)
