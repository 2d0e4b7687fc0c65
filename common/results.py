"""Result rows: records with their outcomes, and their keys as a JSON line has them."""

import secrets
from collections.abc import Container, Mapping
from dataclasses import dataclass

from common.errors import ResultsLost, UsageError
from common.jobs import JobSpec
from common.json_codec import numbers_to_json, to_json
from common.own_columns import ID_COLUMNS, KEEP_ALL, Keep, Own, own_columns
from common.records import Failure, Json, Outcome
from common.tasks import find_task

#: Stands in a line for an output that is encoded apart, and in no text of a user.
_NUMBERS = secrets.token_hex(16)

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
    own: Own = None  #: its own columns; None if its input is all it has

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

    @property
    def columns(self) -> Mapping[str, Json]:
        """The record's own columns as JSON values: all that the job keeps."""
        return own_columns(self.own, self.input, "text")


@dataclass(frozen=True, slots=True)
class ResultLayout:
    """What the results of a job consist of: own columns first, then `id` if they have none, and what the job adds."""

    keep: Keep = KEEP_ALL
    field: str = "text"  #: the name of an input that is a text
    id_column: str | None = None  #: None: `id` or `custom_id`

    @classmethod
    def of(cls, spec: JobSpec) -> "ResultLayout":
        """Return the layout of a job's results."""
        try:
            field = find_task(spec.task).primary_field
        except UsageError:  # of another distribution, which is not installed here
            field = None
        return cls(Keep(spec.keep, spec.output_column), field or "text", spec.id_column)

    def own(self, row: ResultRow) -> Mapping[str, Json]:
        """Return the kept columns of a record as JSON values."""
        return self.keep.own(own_columns(row.own, row.input, self.field))

    def cells(self, row: ResultRow, columns: Container[str]) -> Mapping[str, Json]:
        """Return the kept columns of a record for a table with these columns, all of those the record's own.

        An excerpt of what could not be read is no column of its own. If other records have ids, one that has none gets
        it where they have theirs.
        """
        own = self.own(row)
        if row.own is None and row.error and not isinstance(row.input, Mapping):
            own = {name: cell for name, cell in own.items() if name in columns}
        if self.adds_id(own) and (name := self.id_column_of(columns)):
            own = {**own, name: row.id}
        return own

    def id_column_of(self, names: Container[str]) -> str | None:
        """Return the one of these columns that holds the ids, None if none does."""
        known = (self.id_column, "id") if self.id_column else ID_COLUMNS
        return next((name for name in known if name in names), None)

    def adds_id(self, names: Container[str]) -> bool:
        """Whether records with these own columns get an id."""
        return self.id_column_of(names) is None

    def as_dict(self, row: ResultRow) -> dict[str, Json]:
        """Return a result by key; what there is not is left out."""
        line = dict(self.own(row))
        if self.adds_id(line):
            line["id"] = row.id
        if row.error:
            line |= {"error_code": row.error.code, "error_message": row.error.message}
        else:
            line[self.keep.output] = row.output
        if row.truncated:
            line["truncated"] = True
        return line

    def to_line(self, row: ResultRow) -> str:
        """Return a result as one line of JSON, without a line break."""
        line, numbers = self.as_dict(row), numbers_to_json(row.output) if row.error is None else None
        if numbers is None:
            return to_json(line)
        before, _, after = to_json(line | {self.keep.output: _NUMBERS}).partition(f'"{_NUMBERS}"')
        return f"{before}{numbers}{after}"
