"""Arrow columns as JSON values: the sizes of rows before conversion, and the conversion.

Sizes come first because a column may be far larger in Python than in its file: a dictionary of one long text that a
million rows refer to takes a megabyte on disk and a terabyte in memory.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from common.records import Json

_NUMBER_BYTES = 8  # approximate size of a value that is neither text nor bytes


class Undecodable:
    """Marks a cell whose text is not UTF-8."""


def row_sizes(column: Any) -> Any:
    """Return the size of each row in bytes, as an int64 array of shape (rows,)."""
    if isinstance(column, pa.ChunkedArray):
        return np.concatenate([np.empty(0, np.int64), *map(row_sizes, column.chunks)])
    return _array_sizes(column.storage if isinstance(column, pa.ExtensionArray) else column)


def _array_sizes(column: Any) -> Any:
    kind = column.type
    if pa.types.is_dictionary(kind):
        known = np.append(row_sizes(column.dictionary), 0)  # the last one is for null
        return known[_numbers(column.indices, len(known) - 1)]
    if is_text(kind):
        import pyarrow.compute as pc  # slow to load, and most jobs have no tables

        return _numbers(pc.binary_length(column.cast(pa.large_binary())))
    if pa.types.is_struct(kind):
        return sum((row_sizes(child) for child in column.flatten()), np.zeros(len(column), np.int64))
    if _is_list(kind) or pa.types.is_map(kind):
        return _list_sizes(column)
    return np.full(len(column), _NUMBER_BYTES, np.int64)


def _list_sizes(column: Any) -> Any:
    if pa.types.is_map(column.type):  # a list of pairs, stored as one
        column = column.cast(pa.list_(pa.struct([("key", column.type.key_type), ("value", column.type.item_type)])))
    ends = np.cumsum(lengths := _numbers(column.value_lengths()))
    sums = np.append(0, np.cumsum(row_sizes(column.flatten())))
    return sums[ends] - sums[ends - lengths] + 1


def _numbers(column: Any, null: int = 0) -> Any:
    """Return integers as int64 without `to_numpy`, which imports pandas if it is installed."""
    if not len(column):
        return np.empty(0, np.int64)
    column = column.cast(pa.int64())
    numbers = np.frombuffer(column.buffers()[1], np.int64, len(column), column.offset * 8)
    if not column.null_count:
        return numbers
    return np.where(np.from_dlpack(column.is_null().cast(pa.int8())), null, numbers)


def json_values(column: Any, of_bytes: Callable[[bytes], Json] | None = None) -> list[Json]:
    """Return the cells as JSON values; cells whose text is not UTF-8 are `Undecodable`.

    Times, durations and decimals become text at any depth: Python has no nanoseconds and no years beyond 9999, and JSON
    has neither dates nor decimals. A timestamp with an unknown time zone is converted to UTC.

    Args:
        column: an array.
        of_bytes: what bytes become; None: their text.
    """
    column = _with_text(column)
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        values = [_cell(scalar) for scalar in column]
    return [json_value(value, of_bytes or _text_of) for value in values]


def json_value(value: Any, of_bytes: Callable[[bytes], Json]) -> Json:
    """Return the value as JSON: bytes as `of_bytes` says, NaN as null, other types as their text."""
    match value:
        case None | str() | bool() | int() | Undecodable():
            return value
        case float():
            return value if math.isfinite(value) else None
        case bytes():
            return of_bytes(value)
        case dict():
            return {str(key): json_value(item, of_bytes) for key, item in value.items()}
        case list() | tuple():
            return [json_value(item, of_bytes) for item in value]
    return str(value)


def contains_undecodable(value: Json) -> bool:
    """Return whether the value is or contains a text that is not UTF-8."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return any(contains_undecodable(item) for item in value)
    return isinstance(value, Undecodable)


def replace_undecodable(value: Json) -> Json:
    """Return the value with a replacement character for each text that is not UTF-8."""
    match value:
        case Undecodable():
            return "\N{REPLACEMENT CHARACTER}"
        case dict():
            return {name: replace_undecodable(item) for name, item in value.items()}
        case list():
            return [replace_undecodable(item) for item in value]
    return value


def _with_text(column: Any) -> Any:
    known = json_type(column.type, _known_time_zone)
    if known != column.type:
        column = column.cast(known)
    wanted = json_type(known, _as_text)
    return column if wanted == known else column.cast(wanted)


def json_type(kind: Any, leaf: Callable[[Any], Any], *, decode: bool = False) -> Any:
    """Return the type with `leaf` applied to the types of its leaves; `decode` replaces all dictionaries."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(json_type(field.type, leaf, decode=decode)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(json_type(kind.key_type, leaf, decode=decode), json_type(kind.item_type, leaf, decode=decode))
    if pa.types.is_dictionary(kind):
        value = json_type(kind.value_type, leaf, decode=decode)
        return kind if value == kind.value_type and not decode else value
    if not _is_list(kind):
        return leaf(kind)
    item = kind.value_field.with_type(json_type(kind.value_type, leaf, decode=decode))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(item, kind.list_size)
    return pa.large_list(item) if pa.types.is_large_list(kind) else pa.list_(item)


def _as_text(kind: Any) -> Any:
    is_text = pa.types.is_temporal(kind) or pa.types.is_decimal(kind)
    return pa.string() if is_text and not pa.types.is_interval(kind) else kind


def _known_time_zone(kind: Any) -> Any:
    if not pa.types.is_timestamp(kind) or kind.tz is None:
        return kind
    try:
        pa.array([0], kind).cast(pa.string())
    except pa.ArrowException:
        return pa.timestamp(kind.unit, "UTC")
    return kind


def is_text(kind: Any) -> bool:
    """Whether a value is text or bytes."""
    named = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    viewed = (pa.types.is_string_view, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(test(kind) for test in (*named, *viewed)) and not pa.types.is_decimal(kind)


def _is_list(kind: Any) -> bool:
    return any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _cell(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return Undecodable()


def _text_of(data: bytes) -> Any:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return Undecodable()
