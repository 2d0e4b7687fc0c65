"""Arrow arrays of texts, numbers, flags, vectors and what is nested of them, built without `pa.array`.

`pa.array` imports pandas if it is installed (`pandas-shim.pxi` of pyarrow), to check its arguments for it: 0.4 s and
42 MB in each process, half the time of a small submit. It also takes 40 us for a list of 384 numbers; numpy takes 8.
"""

from array import array
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from common.errors import PayloadError

#: Types of numbers, and their codes for the module array.
_NUMBERS = {pa.int64(): "q", pa.int32(): "i", pa.float64(): "d"}
#: Types of the numbers of a vector.
_VECTOR_NUMBERS = (pa.float32(), pa.float16(), pa.int8(), pa.uint8())
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


def is_vector(kind: pa.DataType, *, fixed: bool = False) -> bool:
    """Whether a type is a list of float32, float16, int8 or uint8, of fixed length (`fixed`) or of any length."""
    is_list = pa.types.is_fixed_size_list(kind) or (pa.types.is_list(kind) and not fixed)
    return bool(is_list and kind.value_type in _VECTOR_NUMBERS)


def holds_vectors(kind: pa.DataType) -> bool:
    """Whether a type is a vector of fixed length, or a list or struct that holds such vectors at any depth."""
    if is_vector(kind, fixed=True):
        return True
    if pa.types.is_struct(kind):
        return any(holds_vectors(kind.field(number).type) for number in range(kind.num_fields))
    return bool(pa.types.is_list(kind)) and holds_vectors(kind.value_type)


def numbers_of(column: pa.Array) -> Any:
    """Return the numbers of an array of a primitive type, those of missing ones included, as an array of numpy."""
    dtype = np.dtype(column.type.to_pandas_dtype())  # a dtype of numpy, in spite of its name
    return np.frombuffer(column.buffers()[1] or b"", dtype, len(column), dtype.itemsize * column.offset)


def primitive_array(numbers: Any, kind: pa.DataType) -> pa.Array:
    """Return an array of the numbers of an array of numpy, which has the dtype of `kind`."""
    numbers = np.ascontiguousarray(numbers).reshape(-1)
    return pa.Array.from_buffers(kind, numbers.size, [None, pa.py_buffer(numbers)])


def vector_array(vectors: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return an array of lists of numbers from sequences, None for a missing one.

    Raises:
        ValueError, TypeError, OverflowError: one does not have the length of `kind`, or holds values of another type.
    """
    size = kind.list_size if pa.types.is_fixed_size_list(kind) else None
    dtype = np.dtype(kind.value_type.to_pandas_dtype())
    nothing = np.zeros(size or 0, dtype)
    rows = [nothing if vector is None else _vector(vector, dtype, size) for vector in vectors]
    values = primitive_array(np.concatenate(rows) if rows else nothing[:0], kind.value_type)
    buffers = [_validity(vectors)]
    if size is None:
        buffers.append(_offsets(map(len, rows)))
    return pa.Array.from_buffers(kind, len(vectors), buffers, children=[values])


def _vector(numbers: Any, dtype: Any, size: int | None) -> Any:
    vector = np.asarray(numbers, dtype)
    if dtype.kind != "f" and getattr(numbers, "dtype", None) != dtype and not np.array_equal(vector, numbers):
        raise ValueError(f"expected numbers of {dtype}, found others")
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


def values_of(column: pa.ChunkedArray) -> list[Any]:
    """Return the values of a column, with its vectors of fixed length as arrays of numpy, at any depth."""
    return [value for part in column.chunks for value in _values(part)]


def _values(part: pa.Array) -> list[Any]:
    kind = part.type
    if not holds_vectors(kind):
        return list(part.to_pylist())
    found: Iterable[Any]
    if is_vector(kind, fixed=True):
        rows = iter(numbers_of(part.flatten()).reshape(-1, kind.list_size))  # without those of missing vectors
        return [next(rows) if there else None for there in part.is_valid().to_pylist()]
    if pa.types.is_struct(kind):
        names = [kind.field(number).name for number in range(kind.num_fields)]
        columns = [_values(part.field(number)) for number in range(kind.num_fields)]
        found = (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))
    else:
        values = _values(part.values)
        found = (values[begin:end] for begin, end in pairwise(part.offsets.to_pylist()))
    return [value if there else None for value, there in zip(found, part.is_valid().to_pylist(), strict=True)]
