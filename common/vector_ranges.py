"""Ranges of vectors: the minimum and maximum of each dimension, between which `precision=int8` has its 256 steps.

All vectors of a job are quantized with the same ranges: those of a file, which are parameters of the job, or those of
its first vectors, which are noted in Redis (`common.queue.ledger.Ledger.note_ranges`).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from common.records import Json
from common.validation import checked, one_line_of

#: Far more dimensions than any model has.
_MAX_DIMENSIONS = 1 << 16

_Row = Annotated[list[float], msgspec.Meta(min_length=1, max_length=_MAX_DIMENSIONS)]


class Ranges(msgspec.Struct, frozen=True):
    """The ranges of a job's vectors."""

    source: Annotated[str, one_line_of(512)]  #: where they come from, for people
    min: _Row  #: of each dimension
    max: _Row

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: they are not the ranges of vectors.
        """
        if len(self.min) != len(self.max):
            raise ValueError(f"{len(self.min):,} minimums and {len(self.max):,} maximums; expected the same number")
        for dimension, (low, high) in enumerate(zip(self.min, self.max, strict=True)):
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise ValueError(
                    f"dimension {dimension}: expected finite numbers, the minimum first, found {low} and {high}"
                )

    def as_dict(self) -> dict[str, Json]:
        """Return what `decode_ranges` takes."""
        return {"source": self.source, "min": self.min, "max": self.max}


@dataclass(frozen=True, slots=True)
class NotedRanges:
    """The ranges of the first vectors of a job, as they are noted in Redis."""

    id: str  #: unique: vectors that were quantized with other ranges are not committed
    ranges: Ranges

    def encode(self) -> str:
        """Return the JSON text of the ranges."""
        return msgspec.json.encode(self.ranges).decode()

    @classmethod
    def decode(cls, id_: str, text: str) -> "NotedRanges":
        """Return the ranges of a JSON text.

        Raises:
            ValueError: it is not one.
        """
        return cls(id_, decode_ranges(json.loads(text)))


def decode_ranges(value: Json) -> Ranges:
    """Return the ranges in a JSON value: an object with `source`, `min` and `max`.

    Raises:
        ValueError: it is something else; the message says what was expected and what was found.
    """
    found: Ranges = checked(value, Ranges, "ranges")
    return found


def is_ranges(value: Json) -> bool:
    """Whether `decode_ranges` takes a value."""
    try:
        decode_ranges(value)
    except ValueError:
        return False
    return True


def ranges_of_params(params: Mapping[str, Json]) -> Ranges | None:
    """Return the ranges among a job's parameters; None if there are none, or invalid ones, which its runner refuses."""
    value = params.get("ranges")
    return decode_ranges(value) if is_ranges(value) else None


def short_floats(numbers: Sequence[Any]) -> list[float]:
    """Return numbers of float32 as floats with the fewest digits that are the same in float32."""
    return [float(str(number)) for number in numbers]
