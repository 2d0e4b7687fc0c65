"""What devices of this kind have taught about the size of batches: kept in Redis, for the next worker.

What is read back is untrusted, and only a hint: a field or a number of another kind is passed over.
"""

import logging
import re
from collections.abc import Mapping

import redis

from common.records import Json
from common.redis.keys import budgets
from workers.inference.core.token_budget import MAX_TOKENS, MIN_CACHED_TOKENS

logger = logging.getLogger(__name__)

#: How long it is kept after the last change, in ms: libraries and drivers change, and are then measured anew.
_TTL_MS = 30 * 86400 * 1000
#: Models in one hash at most; one with more was not written by us.
_MAX_MODELS = 10_000
_NAME = re.compile(rb"^[0-9a-f]{16}$")
_NUMBER = re.compile(rb"^[0-9]{1,7}$")


class BatchSizeCache:
    """Tokens in a batch, by the digest that `workers.device.server.model_cache.Loaded` has for what it loaded.

    Args:
        client: of the Redis where they are kept.
        kind: what the device is called; the same name, the same budgets.
    """

    def __init__(self, client: "redis.Redis", kind: str) -> None:
        self._client = client
        self._key = budgets(kind)
        self._known: dict[str, int] = {}
        self._loaded = False

    def known(self) -> Mapping[str, int]:
        """Return all that is known, read once: a process that died is replaced at once, Redis or not."""
        if self._loaded:
            return self._known
        self._loaded = True
        try:
            if self._client.hlen(self._key) <= _MAX_MODELS:
                found = self._client.hgetall(self._key)
                self._known = {name.decode(): int(value) for name, value in found.items() if _is_budget(name, value)}
        except redis.RedisError as error:
            logger.info("sizes of batches not read, they are measured again: %s", error)
        return self._known

    def update(self, learnt: Mapping[str, Json]) -> None:
        """Keep what a device process says, where it is new."""
        for name, tokens in learnt.items():
            if self._known.get(name) == tokens or not _is_budget(str(name).encode(), str(tokens).encode()):
                continue
            self._known[name] = int(tokens)
            try:
                self._client.hset(self._key, name, int(tokens))
                self._client.pexpire(self._key, _TTL_MS)
            except redis.RedisError as error:
                logger.info("the size of batches is not kept: %s", error)


def _is_budget(name: bytes, value: bytes) -> bool:
    return bool(_NAME.match(name) and _NUMBER.match(value)) and MIN_CACHED_TOKENS <= int(value) <= MAX_TOKENS
