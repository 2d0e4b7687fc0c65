"""A job as input: `job:ID` stands for the results of that job, which need not have run yet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.errors import UsageError
from common.own_columns import Keep
from common.tasks import Task
from common.template import Template
from producer.submit.options import SubmitOptions

_PREFIX = "job:"


@dataclass(frozen=True, slots=True)
class JobInput:
    """The results of a job that the queue knows, and how they become records."""

    job: str  #: an id, a prefix of one, or `@last`
    column: str | None
    id_column: str | None
    template: Template | None
    keep: Keep


def names_job(inputs: Sequence[str]) -> bool:
    """Whether one of the inputs is `job:ID`."""
    return any(name.startswith(_PREFIX) for name in inputs)


def find_job_input(
    inputs: Sequence[str], options: SubmitOptions, task: Task, template: Template | None, keep: Keep
) -> JobInput:
    """Return the job that is the input.

    Raises:
        UsageError: There are other inputs, or options or a task that do not go with it.
    """
    if len(inputs) > 1:
        raise UsageError(f"{inputs[0]}, {inputs[1]}: job:ID is an input by itself. Submit a job for each input.")
    if task.reads_files:
        kind = task.media[0]
        raise UsageError(f"{inputs[0]}: {task.name} reads files of {kind} type, and results hold none.")
    refused: Mapping[str, bool] = {
        "--format": options.format is not None,
        "--quoting": options.quoting is not None,
        "--chunk-size": options.chunk_size is not None,
    }
    for option in filter(refused.get, refused):
        why = "its chunks are those of that job" if option == "--chunk-size" else "it says how files are read"
        raise UsageError(f"{option} does not go with {inputs[0]}: {why}. Leave it out.")
    return JobInput(inputs[0].removeprefix(_PREFIX), options.column, options.id_column, template, keep)
