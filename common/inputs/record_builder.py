"""The record builder: turns a row of any format into a record with an id, or into its failure.

Knows the task's fields. Of files it knows only the names, for messages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from common.errors import RecordError, UsageError
from common.inputs.sources import Source
from common.inputs.strict_json import parse_json
from common.own_columns import ID_COLUMNS, KEEP_NONE, Keep, own_columns
from common.records import Failure, Json, Record
from common.tasks import Task
from common.template import TEMPLATE_FIELD, Template

#: A cell of CSV or Parquet may hold them as JSON text.
_JSON_FIELDS = (
    "table",
    "messages",
    "documents",
    "sentences",
    "word_boxes",
    "questions",
    "assets",
    "speaker_embeddings",
)


@dataclass(frozen=True, slots=True)
class RecordBuilder:
    """Builds records from the rows of one source."""

    source: Source
    task: Task
    column: str | None  #: the column with the input
    id_column: str | None
    multiple_inputs: bool  #: whether there are other sources, so that a line number is not unique
    tabular: bool = False  #: rows come from a table with a header; cells may be empty
    template: Template | None = None  #: makes the text of each record from its columns
    keep: Keep = KEEP_NONE  #: which columns a record carries for its result
    file_field: str | None = None  #: the field of the chosen column, if it holds files

    @property
    def field(self) -> str:
        """The name of an input that is a text."""
        return self.task.primary_field or "text"

    def with_columns(self, names: Sequence[str]) -> "RecordBuilder":
        """Return the builder for rows of a table with these columns.

        Raises:
            UsageError: a requested or required column is missing, or occurs twice.
        """
        absent = self.template.missing(names) if self.template else None
        for option, name in (("--column", self.column), ("--id-column", self.id_column), ("--template", absent)):
            if name is not None and name not in names:
                raise UsageError(f"{self.source.label} has no column {name!r} ({option}); it has: {_listed(names)}.")
        self.keep.check(names, self.source.label)
        column = self.column or (None if self.template else self._only_text_column(names))
        maker = replace(self, column=column, tabular=True)
        doubled = [name for name in maker.columns(names) if list(names).count(name) > 1]
        if doubled:
            raise UsageError(f"{self.source.label} has more than one column {doubled[0]!r}; rename one of them.")
        found = {*names, maker._target(None)} if column or self.template else set(names)
        if not any(found.issuperset(fields) for fields in self.task.fields):
            hint = self.task.hint or f"Select the column with the {self.task.fields[0][0]} with --column."
            raise UsageError(
                f"{self.source.label}: {self.task.name} needs {self.task.required_fields}; "
                f"the columns are: {_listed(names)}. {hint}"
            )
        return maker

    def columns(self, names: Sequence[str]) -> list[str]:
        """Return the columns that inputs and ids are made of, each once."""
        wanted = {field for fields in self.task.fields for field in fields} | {*self.task.optional, *ID_COLUMNS}
        wanted |= {*filter(None, (self.column, self.id_column)), *(self.template.names if self.template else ())}
        return [name for name in dict.fromkeys(names) if name in wanted]

    def read_columns(self, names: Sequence[str]) -> list[str]:
        """Return all columns to read: those that records are built from and those that are kept, each once."""
        wanted = {*self.columns(names), *self.keep.chosen(names)}
        return [name for name in dict.fromkeys(names) if name in wanted]

    def record(self, number: int, line: int, value: Json) -> Record:
        """Build the record of one row.

        Args:
            number: the id of a record without one: the line or row of data, from 0.
            line: its location for messages, from 1.
            value: a string, an object, or for chats a list.
        """
        row = self._row(value)
        if row is None:
            wanted = "a string or an object" if self.task.primary_field else "an object"
            what = f"expected {wanted} with {self.task.required_fields}, found {_KINDS[type(value)]}"
            return self.failed(number, Failure("bad_json", f"{self.source.location(line)}: {what}"), value)
        id = self._id_of(row, number)
        if clashes := self.keep.clashes(row):
            found = f"{self.source.location(line)}: the record has {self.keep.describe_clash(clashes[0])}"
            rest = {name: cell for name, cell in row.items() if name not in clashes}
            return Record(id, None, Failure("column_clash", found), own=self.keep.own(rest))
        try:
            input = self.task.build_input(self._fields(row))
        except RecordError as error:
            return Record(id, value, Failure(error.code, f"{self.source.location(line)}: {error.message}"))
        if self.keep.names == ():
            return Record(id, input)
        own = self.keep.own(row)
        # What the input says is not said twice; that of an image or audio file may become another path.
        said = own_columns(None, input, self.field)
        is_input = own == said and list(own) == list(said) and not self.task.file_fields(input)
        return Record(id, input, own=None if is_input else own)

    def text_record(self, number: int, text: str) -> Record:
        """Build the record of a line of plain text."""
        if self.template is not None:
            return self.record(number, number + 1, text)
        return Record(self._line_id(number), text)

    def failed(self, number: int, failure: Failure, echo: Json) -> Record:
        """Build the record of a row that could not be read; `echo` is the part that can be shown."""
        return Record(self._id_of(echo if isinstance(echo, dict) else {}, number), echo, failure)

    def _row(self, value: Json) -> Mapping[str, Json] | None:
        if isinstance(value, str):
            return {self.task.primary_field or "text": value}
        if isinstance(value, list):
            return {"messages": value} if ("messages",) in self.task.fields else None
        return value if isinstance(value, dict) else None

    def _id_of(self, row: Mapping[str, Json], number: int) -> Json:
        for name in (self.id_column,) if self.id_column else ID_COLUMNS:
            value = row.get(name)
            if value is not None and not (self.tabular and value == ""):
                return value
        return self._line_id(number)

    def _line_id(self, number: int) -> Json:
        return f"{self.source.name}:{number}" if self.multiple_inputs else number

    def _fields(self, row: Mapping[str, Json]) -> dict[str, Json]:
        fields = {name: value for name, value in row.items() if value is not None}
        if self.column is not None:
            fields = self._choose(fields, self.column)
        if self.template is not None:
            fields = self._put(fields, TEMPLATE_FIELD, self.template.render(row))
        if self.tabular:
            fields = {k: v for k, v in fields.items() if v != "" or k not in self.task.optional}
            fields |= {k: self._parsed(k, fields[k]) for k in _JSON_FIELDS if k in fields}
        return fields

    def _choose(self, fields: dict[str, Json], column: str) -> dict[str, Json]:
        """Move the column's value to the task's field, and drop alternative fields."""
        if column not in fields:
            found = ", ".join(sorted(fields)) or "none"
            raise RecordError("missing_field", f"no field {column!r} (--column); the record has: {found}")
        value = fields[column]
        return self._put(fields, self._target(value), value)

    def _put(self, fields: dict[str, Json], name: str, value: Json) -> dict[str, Json]:
        alternatives = {names[0] for names in self.task.fields if len(names) == 1}
        if name not in alternatives or (self.template and self.column):  # the text that goes with an image
            alternatives -= {*self.task.media}
        return {k: v for k, v in fields.items() if k not in alternatives} | {name: value}

    def _target(self, value: Json) -> str:
        if self.column is None:
            return TEMPLATE_FIELD
        known = [field for fields in self.task.fields for field in fields]
        if self.column in known:
            return str(self.column)
        if self.file_field is not None:
            return self.file_field
        return "messages" if isinstance(value, list) and "messages" in known else known[0]

    def _parsed(self, name: str, value: Json) -> Json:
        if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
            return value
        try:
            return parse_json(value)
        except ValueError as error:
            raise RecordError("bad_json", f"the column {name!r}, {error}") from error

    def _only_text_column(self, names: Sequence[str]) -> str | None:
        """Return the only column that could hold the primary field, if there is just one."""
        if not self.task.primary_field or any(set(names).issuperset(f) for f in self.task.fields):
            return None
        others = [n for n in names if n not in {*ID_COLUMNS, self.id_column, *self.task.optional}]
        if len(others) != 1:
            return None
        if set(others[0]) & set(";\t|"):  # the whole header in one cell: a table with another delimiter
            raise UsageError(
                f"{self.source.label} has a single column, {others[0]!r}, and seems to use another "
                "delimiter. Save it with commas, or with tabs and --format tsv; or select the column with --column."
            )
        return others[0]


_KINDS = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}
_KINDS[type(None)] = "null"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(str, names)) or "none"
