"""Result rows: records with their outcomes, and their forms as a JSON line and as table cells."""

from dataclasses import dataclass

from common.errors import ResultsLost
from common.json_codec import to_json
from common.records import Failure, Json, Outcome

COLUMNS = ("id", "input", "output", "error_code", "error_message", "truncated")

NOT_RUN = Failure("not_run", "the job ended before this record was run; `producer retry` runs it")
#: Replaces an outcome that was committed and cannot be found.
LOST = Outcome(
    failure=Failure(ResultsLost.code, "this record was run, but its outcome is gone; `producer retry` runs it again")
)


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One record with its outcome."""

    id: Json
    input: Json
    outcome: Outcome | None  #: None if this record was not run, or not yet

    @property
    def error(self) -> Failure | None:
        """Why there is no output; None if there is one."""
        return NOT_RUN if self.outcome is None else self.outcome.failure

    @property
    def output(self) -> Json:
        """The output; None if the record failed."""
        return None if self.outcome is None or self.outcome.failure else self.outcome.output

    @property
    def truncated(self) -> bool:
        """Whether there is an output, of an input that was truncated to what the model takes."""
        return self.outcome is not None and self.outcome.failure is None and self.outcome.truncated


def to_line(row: ResultRow) -> str:
    """Return the row as one line of JSON, without a line break: id, input, and output or error."""
    line: dict[str, Json] = {"id": row.id, "input": row.input}
    if row.error:
        line["error"] = row.error.as_dict()
    else:
        line["output"] = row.output
    if row.truncated:
        line["truncated"] = True
    return to_json(line)


def cells(row: ResultRow, output: Json) -> tuple[Json, ...]:
    """Return the row as cells of the columns `COLUMNS`; `output` is its output in the table's form."""
    code, message = (row.error.code, row.error.message) if row.error else (None, None)
    return as_text(row.id), as_text(row.input), output, code, as_text(message), row.truncated


def as_text(value: Json) -> str | None:
    """Return a value for a text cell: a text unchanged, None for None, otherwise its JSON.

    Lone surrogates, which a text file cannot hold, are escaped.
    """
    if value is None:
        return None
    text = value if isinstance(value, str) else to_json(value)
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()
