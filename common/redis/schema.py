"""The number of the form in which jobs lie in Redis, so that another release does not misread them."""

import redis

from common.errors import UsageError
from common.redis import keys
from common.redis.url import mask_url
from common.text import replace_control_chars

#: Raised by whoever changes what keys hold so that an earlier release would misread it, or the other way round.
SCHEMA = 1


def check_schema(client: "redis.Redis", url: str) -> None:
    """Check that what lies in Redis is of this release's form; an empty Redis is of any.

    Raises:
        UsageError: it is of another.
        redis.RedisError: Redis is away.
    """
    found = client.get(keys.SCHEMA)
    if found is not None and found != b"%d" % SCHEMA:
        raise UsageError(
            f"The jobs in Redis at {mask_url(url)} are of another release of hugqueue: their schema is "
            f"{replace_control_chars(found[:20].decode(errors='replace'))}, and this release knows {SCHEMA}. Use "
            "the release that wrote them, or another database of that Redis (the number at the end of the address); "
            "with the embedded Redis, another HUGQUEUE_HOME."
        )


def write_schema(client: "redis.Redis") -> None:
    """Note the form with the first job; it goes with the last one."""
    client.set(keys.SCHEMA, SCHEMA, nx=True)
