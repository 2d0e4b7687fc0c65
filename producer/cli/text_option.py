"""Options that hold a text: typed with escapes for line ends, or read from a file by `@FILE`."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from common.errors import UsageError, path_errors

F = TypeVar("F", bound=Callable[..., Any])

#: Bytes of a file: more than any text of such an option may have.
_MAX_BYTES = 1024**2
_ESCAPE = re.compile(r"\\([nt\\@])")
_ESCAPES = {"n": "\n", "t": "\t"}


def text_option(name: str, text: str) -> Callable[[F], F]:
    """Return an option that takes a text, or a file that holds it.

    Args:
        name: of the option.
        text: its help.
    """
    return click.option(name, metavar="TEXT|@FILE", callback=_read, help=text)


def _read(_context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    if value.startswith("@"):
        return read_text(value[1:], f"--{option.name}")
    return _ESCAPE.sub(lambda found: _ESCAPES.get(found[1], found[1]), value)


def read_text(name: str, option: str) -> str:
    """Return the text of a file in UTF-8, without the line end after its last line.

    Args:
        name: of the file.
        option: that names it, for messages.

    Raises:
        UsageError: It cannot be read, is too large, or is not UTF-8.
    """
    with path_errors(f"{option} @{name}"), Path(name).open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise UsageError(f"{option} @{name}: the file has more than {_MAX_BYTES:,} bytes; expected a short text.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{option} @{name} line {line}: byte 0x{data[error.start]:02x} is not UTF-8.") from error
    return text.replace("\r\n", "\n").removesuffix("\n")
