"""What all commands share: reaching the queue, and errors as one sentence and an exit status."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from common.errors import HugqueueError, UnknownJob
from common.settings import load_settings
from producer.printing import say

if TYPE_CHECKING:
    from producer.client import Client

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


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
    settings = load_settings()
    from producer.client import Client

    if not settings.embedded:
        client = Client(settings)
        client.check()
        yield client
        return
    from producer.embedded.attach import attach

    # A command that only looks has Redis for a moment, which is not worth a word.
    with attach(settings, working=working, say=say if working else lambda _: None) as embedded:
        try:
            yield Client(embedded)
        except UnknownJob:
            say("REDIS_URL is not set: looked in the embedded Redis alone.")
            raise


@contextlib.contextmanager
def open_client_to_wait(job_ids: tuple[str, ...]) -> "Iterator[Client]":
    """Yield a client to wait for these jobs with: an embedded queue gets its worker, unless they are all finished.

    Raises:
        UnknownJob: there is none of one of the ids.
    """
    with open_client() as client, contextlib.ExitStack() as stack:
        if not all(client.job(job_id).status.finished for job_id in job_ids):
            stack.enter_context(open_client(working=True))
        yield client


def is_embedded() -> bool:
    """Whether no queue is configured."""
    return load_settings().embedded
