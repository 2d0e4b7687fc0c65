"""How commands reach the queue."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from common.errors import UnknownJob
from producer.printing import say

if TYPE_CHECKING:
    from producer.client import Client


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
