"""A record and what became of it, and how that is written for the user."""

from dataclasses import dataclass

from common.errors import ResultsLost
from common.json_codec import to_json
from common.records import Failure, Json, Outcome

COLUMNS = ("id", "input", "output", "error_code", "error_message", "truncated")

NOT_RUN = Failure("not_run", "the job ended before this record was run; `producer retry` runs it")
#: Stands in place of an outcome that was committed and cannot be found.
LOST = Outcome(
    failure=Failure(ResultsLost.code, "this record was run, but its outcome is gone; `producer retry` runs it again")
)


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One record with its outcome."""

    id: Json
    input: Json
    outcome: Outcome | None  #: None: the job ended, or has not yet come, before this record

    @property
    def error(self) -> Failure | None:
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


def to_line(row: ResultRow) -> str:
    """Return the row as one line of JSON, without a line end: id, input, and output or error."""
    line: dict[str, Json] = {"id": row.id, "input": row.input}
    if row.error:
        line["error"] = row.error.as_dict()
    else:
        line["output"] = row.output
    if row.truncated:
        line["truncated"] = True
    return to_json(line)


def cells(row: ResultRow, output: Json) -> tuple[Json, ...]:
    """Return the row as the cells of a table with the columns `COLUMNS`; `output` is its output as the table has it."""
    code, message = (row.error.code, row.error.message) if row.error else (None, None)
    return as_text(row.id), as_text(row.input), output, code, as_text(message), row.truncated


def as_text(value: Json) -> str | None:
    """Return a value for a cell of text: a text as it is, nothing for None, else its JSON text.

    Lone surrogates, which no file of text can hold, are escaped.
    """
    if value is None:
        return None
    text = value if isinstance(value, str) else to_json(value)
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()
