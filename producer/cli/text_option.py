"""Options that hold a text: typed with escapes for line ends, or read from a file by `@FILE`."""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from producer.submit.text_file import read_text

F = TypeVar("F", bound=Callable[..., Any])

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
