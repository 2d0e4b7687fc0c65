"""Quantization: the float32 vectors of a chunk's outcomes in another precision.

The numbers are those of `quantize_embeddings` of sentence-transformers (`sentence_transformers/util/quantization.py`,
6.2), bit by bit: `int8` and `uint8` are the step of 255 between the minimum and the maximum of a dimension, `binary`
and `ubinary` have a bit for each dimension, set where it is positive. `float16` is a plain conversion.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from common.embedding_params import NUMBERS, WITH_RANGES
from common.payloads.arrays import holds_vectors, is_vector, numbers_of, primitive_array
from common.payloads.codec import decode_outcomes, replace_outputs
from common.vector_ranges import Ranges, short_floats


def number_type(precision: str) -> pa.DataType:
    """Return the Arrow type of the numbers of a vector in a precision."""
    return pa.type_for_alias(NUMBERS[precision])


def quantize(vectors: Any, precision: str, ranges: Ranges | None = None) -> Any:
    """Return vectors in a precision.

    Args:
        vectors: (rows, dimensions), float32.
        precision: from `common.task_params.PRECISIONS`.
        ranges: of the dimensions, for `int8` and `uint8`; None gives zeros, for rows without a vector.

    Returns:
        (rows, dimensions), or (rows, dimensions / 8) for `binary` and `ubinary`.
    """
    dtype = number_type(precision).to_pandas_dtype()
    if precision in WITH_RANGES:
        steps = np.zeros_like(vectors) if ranges is None else _steps(vectors, ranges)
        return (steps if precision == "uint8" else steps - 128).astype(dtype)
    if precision == "ubinary":
        return np.packbits(vectors > 0, axis=-1)
    if precision == "binary":
        return (np.packbits(vectors > 0, axis=-1).astype(np.int16) - 128).astype(dtype)
    with np.errstate(over="ignore"):  # beyond 65,504, float16 has only infinity
        return vectors.astype(dtype)


def _steps(vectors: Any, ranges: Ranges) -> Any:
    low, high = np.array(ranges.min, np.float32), np.array(ranges.max, np.float32)
    width = (high - low) / 255
    width = np.where(width == 0, np.float32(1), width)
    return np.clip(np.floor((vectors - low) / width), 0, 255)


def quantize_outcomes(payload: bytes, precision: str, ranges: Ranges | None = None) -> bytes:
    """Return a payload of outcomes with all vectors in its outputs in a precision; arguments as for `quantize`.

    Raises:
        PayloadError: it is not a payload of outcomes.
    """
    table = decode_outcomes(payload)
    outputs = table["output"].combine_chunks()
    if not holds_vectors(outputs.type):
        return payload
    return replace_outputs(table, _converted(outputs, lambda vectors: quantize(vectors, precision, ranges), precision))


def _converted(column: pa.Array, convert: Callable[[Any], Any], precision: str) -> pa.Array:
    """Return the column with its vectors of fixed length converted; all else stays as it is."""
    kind, own = column.type, column.buffers()
    if is_vector(kind, fixed=True):
        found = convert(numbers_of(column.values).reshape(-1, kind.list_size))
        target = pa.list_(number_type(precision), found.shape[1])
        values = primitive_array(found, target.value_type)
        return pa.Array.from_buffers(target, len(column), own[:1], children=[values])
    if not holds_vectors(kind):
        return column
    if pa.types.is_struct(kind):
        children = [_converted(column.field(number), convert, precision) for number in range(kind.num_fields)]
        fields = [kind.field(number).with_type(child.type) for number, child in enumerate(children)]
        return pa.Array.from_buffers(pa.struct(fields), len(column), own[:1], children=children)
    values = _converted(column.values, convert, precision)
    return pa.Array.from_buffers(pa.list_(values.type), len(column), own[:2], children=[values])


def vectors_in(payload: bytes) -> Any:
    """Return all vectors in the outputs of a payload of outcomes, of shape (vectors, dimensions).

    Raises:
        PayloadError: it is not a payload of outcomes.
    """
    found = _vectors(decode_outcomes(payload)["output"].combine_chunks())
    return np.concatenate(found) if found else np.zeros((0, 0), np.float32)


def _vectors(column: pa.Array) -> list[Any]:
    kind = column.type
    if is_vector(kind, fixed=True):
        return [numbers_of(column.flatten()).reshape(-1, kind.list_size)]  # without those of missing vectors
    if not holds_vectors(kind):
        return []
    children = column.flatten() if pa.types.is_struct(kind) else [column.flatten()]
    return [vectors for child in children for vectors in _vectors(child)]


def ranges_of(vectors: Any, source: str) -> Ranges:
    """Return the ranges of vectors, of shape (vectors, dimensions); `source` says where they come from."""
    return Ranges(source, short_floats(vectors.min(axis=0)), short_floats(vectors.max(axis=0)))
