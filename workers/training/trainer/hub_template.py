"""A template over the rows of a dataset on the Hub, which are Python values; classes are shown by their names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import RecordError, UsageError
from common.json_codec import to_jsonable
from common.records import Json
from common.template import Template


@dataclass(frozen=True, slots=True)
class HubTemplate:
    """A template, and the names of the classes in the columns that it names."""

    template: Template
    classes: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, text: str, dataset: Any, source: str) -> "HubTemplate":
        """Return the template of this text for a dataset.

        Raises:
            UsageError: It names a column that the dataset does not have.
        """
        template, columns = Template.parse(text), dataset.column_names
        if (absent := template.missing(columns)) is not None:
            raise UsageError(f"{source} has no column {absent!r} (--template); it has: {', '.join(columns)}.")
        found = {name: class_names(dataset, name) for name in template.names}
        return cls(template, {name: names for name, names in found.items() if names})

    def render(self, row: Mapping[str, Any]) -> str:
        """Return the text of one row.

        Raises:
            UsageError: It is too long.
        """
        try:
            return self.template.render({name: self._cell(name, row[name]) for name in self.template.names})
        except RecordError as error:
            raise UsageError(f"{error.message}.") from error

    def _cell(self, column: str, value: Any) -> Json:
        names = self.classes.get(column)
        if names and isinstance(value, int):
            return names[value] if 0 <= value < len(names) else None
        try:
            return to_jsonable(value)
        except TypeError:  # dates, for example
            return str(value)


def class_names(dataset: Any, column: str | None) -> Sequence[str] | None:
    """Return the names of the classes in a column of a dataset, None if it holds no classes."""
    feature = dataset.features.get(column) if column else None
    names: Sequence[str] | None = getattr(getattr(feature, "feature", feature), "names", None)
    return names
