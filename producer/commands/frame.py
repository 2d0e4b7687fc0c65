"""What all commands do: reach the queue, and end with one sentence and an exit status where they fail."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from common.errors import HugqueueError, UnknownJob
from producer.printing import say

if TYPE_CHECKING:
    from producer.client import Client


@contextlib.contextmanager
def errors_as_sentences() -> Iterator[None]:
    """End the command with one sentence and its exit status where the block raises an error of ours."""
    try:
        yield
        sys.stdout.flush()
    except HugqueueError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_status)
    except BrokenPipeError:
        # `producer results JOB | head`: the reader has enough. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


@contextlib.contextmanager
def open_client(*, working: bool = False) -> "Iterator[Client]":
    """Yield a client of the configured queue, or of an embedded one.

    Args:
        working: whether an embedded queue needs its worker; a configured one has its own.
    """
    from producer.client import Client

    with Client(working=working, say=say) as client:
        try:
            yield client
        except UnknownJob:
            if client.embedded:
                say("REDIS_URL is not set: looked in the embedded Redis alone.")
            raise
