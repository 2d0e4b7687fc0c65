"""The schema number of the data in Redis, so that another release does not misread it."""

import redis

from common.display_text import replace_control_chars
from common.errors import UsageError
from common.redis import keys
from common.redis.url import mask_url

#: To be raised with every change of keys or values that an earlier or a later release would misread.
SCHEMA = 2


def check_schema(client: "redis.Redis", url: str) -> None:
    """Check that the data in Redis has this release's schema, or that there is none.

    Raises:
        UsageError: the schema is another.
        redis.RedisError: Redis is unavailable.
    """
    found = client.get(keys.SCHEMA)
    if found is not None and found != b"%d" % SCHEMA:
        raise UsageError(
            f"The jobs in Redis at {mask_url(url)} were written by another release of hugqueue: their schema is "
            f"{replace_control_chars(found[:20].decode(errors='replace'))}, and this release uses {SCHEMA}. Use "
            "the release that wrote them, or another database of that Redis (the number at the end of the URL); "
            "with the embedded Redis, another HUGQUEUE_HOME."
        )


def write_schema(client: "redis.Redis") -> None:
    """Write the schema number with the first job; it is deleted with the last one."""
    client.set(keys.SCHEMA, SCHEMA, nx=True)
