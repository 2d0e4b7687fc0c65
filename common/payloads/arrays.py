"""Arrow arrays of texts, numbers, flags, vectors and what is nested of them, built without `pa.array`.

`pa.array` imports pandas if it is installed (`pandas-shim.pxi` of pyarrow), to check its arguments for it: 0.4 s and
42 MB in each process, half the time of a small submit. It also takes 40 us for a list of 384 numbers; numpy takes 8.
"""

from array import array
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from common.errors import PayloadError

#: Types of numbers, and their codes for the module array.
_NUMBERS = {pa.int64(): "q", pa.int32(): "i", pa.float64(): "d"}
#: What the offsets of lists, texts and bytes can count.
_MAX_OFFSET = 2**31 - 1
_TOO_LARGE = "A chunk's {} take more than 2 GB, which is too large. Submit in smaller chunks."


def text_array(texts: Sequence[str | None]) -> pa.Array:
    """Return an array of text.

    Raises:
        PayloadError: the texts are too large for one array.
    """
    if not any(text is not None for text in texts):
        return pa.nulls(len(texts), pa.string())
    builder = pa.lib.StringBuilder()
    builder.append_values(texts)
    built = builder.finish()
    if len(built) != len(texts):  # what does not fit is dropped silently
        raise PayloadError(_TOO_LARGE.format("texts"))
    return built


def number_array(numbers: Sequence[int]) -> pa.Array:
    """Return an array of int32."""
    return pa.Array.from_buffers(pa.int32(), len(numbers), [None, pa.py_buffer(array("i", numbers))])


def flag_array(flags: Sequence[bool]) -> pa.Array:
    """Return an array of bool: a bit for each, the lowest of a byte first."""
    return pa.Array.from_buffers(pa.bool_(), len(flags), [None, _bits(flags)])


def is_vector(kind: pa.DataType, *, fixed: bool = False) -> bool:
    """Whether a type is a list of float32, of fixed length (`fixed`) or of any length."""
    is_list = pa.types.is_fixed_size_list(kind) or (pa.types.is_list(kind) and not fixed)
    return bool(is_list and kind.value_type == pa.float32())


def vector_array(vectors: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return an array of lists of numbers from sequences, None for a missing one.

    Raises:
        ValueError, TypeError: one does not have the length of `kind`, or holds other values than numbers.
    """
    size = kind.list_size if pa.types.is_fixed_size_list(kind) else None
    nothing = [0.0] * (size or 0)
    rows = [_vector(nothing if vector is None else vector, size) for vector in vectors]
    numbers = np.concatenate(rows) if rows else np.zeros(0, np.float32)
    values = pa.Array.from_buffers(pa.float32(), numbers.size, [None, pa.py_buffer(numbers)])
    buffers = [_validity(vectors)]
    if size is None:
        buffers.append(_offsets(map(len, rows)))
    return pa.Array.from_buffers(kind, len(vectors), buffers, children=[values])


def _vector(numbers: Any, size: int | None) -> Any:
    vector = np.asarray(numbers, np.float32)
    if vector.ndim != 1 or size not in (None, len(vector)):
        raise ValueError(f"expected a vector of {size or 'some'} numbers, found the shape {vector.shape}")
    return vector


def column_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return an array of any type, None for a missing value. Keys that a struct does not have are left out.

    Raises:
        pyarrow.ArrowException, TypeError, ValueError: a value is not of that type.
        PayloadError: texts are too large for one array.
    """
    if is_vector(kind):
        return vector_array(values, kind)
    if pa.types.is_struct(kind):
        return _struct_array(values, kind)
    if pa.types.is_list(kind):
        return _list_array(values, kind)
    return _scalar_array(values, kind)


def _scalar_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_string(kind):
        return _texts(values)
    if pa.types.is_binary(kind):
        return _bytes_array(values)
    if pa.types.is_boolean(kind):
        return _flags(values)
    if kind in _NUMBERS:
        numbers = array(_NUMBERS[kind], [0 if value is None else value for value in values])
        return pa.Array.from_buffers(kind, len(values), [_validity(values), pa.py_buffer(numbers)])
    return pa.array(values, kind)


def _flags(values: Sequence[Any]) -> pa.Array:
    if not all(value is None or isinstance(value, bool | np.bool_) for value in values):
        raise TypeError("expected true or false")
    return pa.Array.from_buffers(pa.bool_(), len(values), [_validity(values), _bits([bool(value) for value in values])])


def _texts(texts: Sequence[str | None]) -> pa.Array:
    try:
        return text_array(texts)
    except UnicodeEncodeError:  # a lone surrogate, from a JSON escape in a label or a cell of a table
        return text_array([None if t is None else t.encode(errors="backslashreplace").decode() for t in texts])


def _bytes_array(values: Sequence[bytes | None]) -> pa.Array:
    parts = [b"" if value is None else value for value in values]
    if not all(isinstance(part, bytes) for part in parts):
        raise TypeError("expected bytes")
    buffers = [_validity(values), _offsets(map(len, parts)), pa.py_buffer(b"".join(parts))]
    return pa.Array.from_buffers(pa.binary(), len(values), buffers)


def _struct_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    for value in values:
        if value is not None and not isinstance(value, dict):
            raise TypeError(f"expected {kind}, found a {type(value).__name__}")
    fields = [kind.field(number) for number in range(kind.num_fields)]
    children = [
        column_array([None if value is None else value.get(field.name) for value in values], field.type)
        for field in fields
    ]
    return pa.Array.from_buffers(kind, len(values), [_validity(values)], children=children)


def _list_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    rows = [() if value is None else value for value in values]
    for row in rows:
        if isinstance(row, str | bytes | dict):
            raise TypeError(f"expected {kind}, found a {type(row).__name__}")
    items = column_array(list(chain.from_iterable(rows)), kind.value_type)
    return pa.Array.from_buffers(kind, len(values), [_validity(values), _offsets(map(len, rows))], children=[items])


def _validity(values: Sequence[Any]) -> pa.Buffer | None:
    there = [value is not None for value in values]
    return None if all(there) else _bits(there)


def _bits(flags: Sequence[bool]) -> pa.Buffer:
    bits = bytearray(-(-len(flags) // 8))
    for number, flag in enumerate(flags):
        bits[number >> 3] |= flag << (number & 7)
    return pa.py_buffer(bits)


def _offsets(lengths: Iterable[int]) -> pa.Buffer:
    ends = np.cumsum([0, *lengths], dtype=np.int64)
    if ends[-1] > _MAX_OFFSET:
        raise PayloadError(_TOO_LARGE.format("outputs"))
    return pa.py_buffer(ends.astype(np.int32))


def vectors_of(column: pa.ChunkedArray) -> list[Any]:
    """Return the vectors of a column of fixed length, each a numpy array of float32, None for a missing one."""
    found: list[Any] = []
    for part in column.chunks:
        values = part.flatten()  # without those of missing vectors
        numbers = np.frombuffer(values.buffers()[1] or b"", np.float32, len(values), 4 * values.offset)
        rows = iter(numbers.reshape(-1, column.type.list_size))
        found += [next(rows) if there else None for there in part.is_valid().to_pylist()]
    return found
