"""What a writer is given: a record and what became of it."""

from dataclasses import dataclass

from common.values import Failure, Json, Outcome

NOT_RUN = Failure("not_run", "the job ended before this record was run; `producer retry` runs it")


@dataclass(frozen=True, slots=True)
class Row:
    """One record with its outcome."""

    id: Json
    input: Json
    outcome: Outcome | None  #: None: the job ended, or has not yet come, before this record

    @property
    def failure(self) -> Failure | None:
        """Why there is no output."""
        return NOT_RUN if self.outcome is None else self.outcome.failure

    @property
    def output(self) -> Json:
        """The output; None if the record failed."""
        return None if self.outcome is None or self.outcome.failure else self.outcome.output

    @property
    def truncated(self) -> bool:
        """Whether there is an output, made from a text that was cut to what the model takes."""
        return self.outcome is not None and self.outcome.failure is None and self.outcome.truncated
