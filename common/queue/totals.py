"""Totals: what a queue has done so far, counted in Redis by the steps that do it, for metrics.

They only rise, until the last job is deleted, and outlive each job. A record that is run again by a retry counts again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import redis

from common.display_text import one_line
from common.redis import keys

#: The error code of failed records whose code is unknown, or one too many.
OTHER = "other"
#: Characters of an error code that are counted: runners of other distributions name codes as they like.
_MAX_CODE = 64
#: No queue has done more than that: the number is forged.
_MAX_TOTAL = 10**15


@dataclass(frozen=True, slots=True)
class Totals:
    """What a queue has done so far."""

    succeeded: int = 0  #: records
    failed: Mapping[str, int] = field(default_factory=dict)  #: records, by error code
    jobs: Mapping[str, int] = field(default_factory=dict)  #: that ended, by status
    leases_lost: int = 0  #: chunks whose worker died or lost its connection

    @classmethod
    def decode(cls, raw: Mapping[bytes, bytes]) -> "Totals":
        """Return the totals in a hash; what is not a total is left out."""
        numbers = {one_line(name.decode(errors="replace")): _number(value) for name, value in raw.items()}
        return cls(
            numbers.get("records:succeeded", 0),
            _below(numbers, "records:failed:"),
            _below(numbers, "jobs:"),
            numbers.get("leases_lost", 0),
        )


def read_totals(client: "redis.Redis") -> Totals:
    """Return the totals of a queue.

    Raises:
        redis.RedisError: Redis is away.
    """
    return Totals.decode(client.hgetall(keys.TOTALS))


def failed_by_code(failed: int, codes: Mapping[str, int]) -> list[str | int]:
    """Return the failed records of a chunk as the script `commit` takes them: code, number, code, number, ...

    Args:
        failed: how many records failed.
        codes: how many of them with each error code; the others count as `OTHER`.
    """
    known = {one_line(code, _MAX_CODE) or OTHER: number for code, number in codes.items()}
    if (rest := failed - sum(known.values())) > 0:
        known[OTHER] = known.get(OTHER, 0) + rest
    return [word for pair in known.items() for word in pair]


def _below(numbers: Mapping[str, int], prefix: str) -> dict[str, int]:
    return {
        name.removeprefix(prefix)[:_MAX_CODE]: number for name, number in numbers.items() if name.startswith(prefix)
    }


def _number(text: bytes) -> int:
    return min(int(text), _MAX_TOTAL) if text.isdigit() and len(text) < 20 else 0
