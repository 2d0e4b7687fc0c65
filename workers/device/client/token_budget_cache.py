"""The cache of calibrated batch sizes, kept in Redis for the next worker with the same kind of device.

Data read from Redis is untrusted, and only a hint: invalid fields and numbers are skipped.
"""

import logging
import re
from collections.abc import Mapping

import redis

from common.records import Json
from common.redis.keys import token_budgets
from workers.inference.core.token_budget import MAX_TOKENS, MIN_CACHED_TOKENS

logger = logging.getLogger(__name__)

#: How long it is kept after the last change, in ms: after updates of libraries and drivers it is calibrated again.
_TTL_MS = 30 * 86400 * 1000
#: Most models in one hash; one with more was not written by us.
_MAX_MODELS = 10_000
_NAME = re.compile(rb"^[0-9a-f]{16}$")
_NUMBER = re.compile(rb"^[0-9]{1,7}$")


class TokenBudgetCache:
    """Tokens in a batch, by `LoadedModel.digest`.

    Args:
        client: of the Redis where they are kept.
        kind: the device's product name.
    """

    def __init__(self, client: "redis.Redis", kind: str) -> None:
        self._client = client
        self._key = token_budgets(kind)
        self._known: dict[str, int] = {}
        self._loaded = False

    def known(self) -> Mapping[str, int]:
        """Return all known sizes. They are read once: replacing a crashed process must not wait for Redis."""
        if self._loaded:
            return self._known
        self._loaded = True
        try:
            if self._client.hlen(self._key) <= _MAX_MODELS:
                found = self._client.hgetall(self._key)
                self._known = {name.decode(): int(value) for name, value in found.items() if _is_budget(name, value)}
        except redis.RedisError as error:
            logger.info("batch sizes not read, calibrating them again: %s", error)
        return self._known

    def update(self, learned: Mapping[str, Json]) -> None:
        """Store the new batch sizes that a device process measured."""
        for name, tokens in learned.items():
            if self._known.get(name) == tokens or not _is_budget(str(name).encode(), str(tokens).encode()):
                continue
            self._known[name] = int(tokens)
            try:
                self._client.hset(self._key, name, int(tokens))
                self._client.pexpire(self._key, _TTL_MS)
            except redis.RedisError as error:
                logger.info("batch size not stored: %s", error)


def _is_budget(name: bytes, value: bytes) -> bool:
    return bool(_NAME.match(name) and _NUMBER.match(value)) and MIN_CACHED_TOKENS <= int(value) <= MAX_TOKENS
