"""Templates: texts with names of columns in braces, such as `{title}: {body}`, rendered for each record.

A name stands for the column of exactly that name; there are no formats, attributes or indexes, so that a template may
come from anywhere. `{{` and `}}` are braces.
"""

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass

from common.errors import RecordError
from common.json_codec import to_json, to_jsonable
from common.records import Json

#: The field that a rendered template becomes.
TEMPLATE_FIELD = "text"
#: Characters of a template: it is part of the job, which workers read for each chunk.
MAX_LENGTH = 65_536
#: Characters of a rendered text: a template may name a long column many times.
MAX_RENDERED = 16 * 1024**2

_TOKEN = re.compile(r"\{\{|\}\}|\{(?P<name>[^{}]*)\}|[{}]")


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template."""

    text: str  #: as it was written
    literals: tuple[str, ...]  #: the text before each name, and after the last
    names: tuple[str, ...]  #: in order; a name may occur several times

    @classmethod
    def parse(cls, text: str) -> "Template":
        """Return the template of that text, which is untrusted.

        Raises:
            ValueError: it names no column, a brace has no partner, or it is too long; the message gives the position.
        """
        _check_text(text)
        literals, names, start = [""], [], 0
        for token in _TOKEN.finditer(text):
            literals[-1] += text[start : token.start()]
            start = token.end()
            if token["name"] is not None:
                names.append(_checked_name(text, token))
                literals.append("")
            elif token[0] in ("{{", "}}"):
                literals[-1] += token[0][0]
            else:
                what = "is never closed" if token[0] == "{" else "closes nothing"
                hint = f"Write {token[0] * 2} for a brace in the text."
                raise ValueError(f"the {token[0]} at {_position(text, token.start())} {what}. {hint}")
        literals[-1] += text[start:]
        if not names:
            raise ValueError("it names no column; write a column's name in braces, such as {text}")
        return cls(text, tuple(literals), tuple(names))

    def missing(self, columns: Container[str]) -> str | None:
        """Return the first name that is not among the columns, None if there is none."""
        for name in self.names:
            if name not in columns:
                return name
        return None

    def render(self, row: Mapping[str, Json]) -> str:
        """Return the text of one row: null as nothing, numbers and nested values as in JSON.

        Raises:
            RecordError: `missing_field`, the row lacks a column; `too_large`, the text has more than `MAX_RENDERED`
                characters.
        """
        if (name := self.missing(row)) is not None:
            found = ", ".join(sorted(map(str, row))) or "none"
            raise RecordError("missing_field", f"no field {name!r} (--template); the record has: {found}")
        cells = {name: _cell(row[name]) for name in self.names}
        parts = [self.literals[0]]
        for name, literal in zip(self.names, self.literals[1:], strict=True):
            parts += (cells[name], literal)
        if sum(map(len, parts)) > MAX_RENDERED:  # before they are joined
            raise RecordError("too_large", f"the text of --template is longer than {MAX_RENDERED:,} characters")
        return "".join(parts)


def _check_text(text: str) -> None:
    if len(text) > MAX_LENGTH:
        raise ValueError(f"it has {len(text):,} characters; at most {MAX_LENGTH:,} are allowed")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"it is not UTF-8 at {_position(text, error.start)}") from error


def _checked_name(text: str, token: re.Match[str]) -> str:
    name: str = token["name"]
    if not name.strip():
        raise ValueError(f"the braces at {_position(text, token.start())} hold no column's name")
    return name


def _position(text: str, offset: int) -> str:
    """Return where an offset is, for people: both counted from 1."""
    line, start = text.count("\n", 0, offset) + 1, text.rfind("\n", 0, offset) + 1
    return f"line {line}, character {offset - start + 1}"


def _cell(value: Json) -> str:
    if isinstance(value, str):
        return value
    value = to_jsonable(value)  # NaN becomes null
    return "" if value is None else to_json(value)
