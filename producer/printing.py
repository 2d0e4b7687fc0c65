"""Where words go: the answer to stdout, everything else to stderr."""

import json

import click

from common.values import Json, visible


def say(text: str) -> None:
    """Tell the user something that is not the answer."""
    click.echo(visible(text), err=True)


def print_json(value: Json) -> None:
    """Print a JSON document as the answer."""
    click.echo(visible(json.dumps(value, ensure_ascii=False, indent=2)))
