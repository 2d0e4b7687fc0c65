"""Strict JSON: refuses what Python's parser accepts beyond the standard (NaN, 1e999, unbounded nesting).

Lone surrogates are kept: the encoders of payloads and outputs escape them.
"""

import json
import math
from typing import NoReturn

from common.records import Json

#: Far deeper than any chat or table, and far less than the recursion limit of the encoders.
MAX_DEPTH = 64


def parse_json(text: str) -> Json:
    """Parse a JSON text.

    Raises:
        ValueError: it is not JSON; the message gives the reason and, where known, the column (from 1).
    """
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"column {error.pos + 1}: not JSON: {error.msg}") from error
    except RecursionError as error:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from error
    except ValueError as error:
        raise ValueError(f"not standard JSON: {error}") from error
    if isinstance(value, dict | list) and _deeper_than(value, MAX_DEPTH):
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    return value


def _deeper_than(value: Json, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    if levels == 0:
        return True
    return any(_deeper_than(item, levels - 1) for item in (value.values() if isinstance(value, dict) else value))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is out of range")
    return value


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
