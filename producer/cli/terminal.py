"""Where words go: the answer to stdout, everything else to stderr."""

import json
from collections.abc import Callable

import click

from common.console import print_stderr
from common.records import Json
from common.text import replace_control_chars

#: Takes a sentence for the user.
Notify = Callable[[str], None]


class _Talk:
    """How much is said besides the answer."""

    quiet = False


def set_quiet() -> None:
    """Say nothing from now on but the answer, and what went wrong."""
    _Talk.quiet = True


def is_quiet() -> bool:
    """Whether nothing is said but the answer, and what went wrong."""
    return _Talk.quiet


def notify(text: str) -> None:
    """Tell the user something that is not the answer."""
    if not _Talk.quiet:
        print_stderr(text)


def print_json(value: Json) -> None:
    """Print a JSON document as the answer."""
    text = replace_control_chars(json.dumps(value, ensure_ascii=False, indent=2))
    click.echo(text.encode())  # JSON is UTF-8, whatever the locale says
