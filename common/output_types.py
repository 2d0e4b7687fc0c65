"""Output types: the Arrow type of a task's outputs, declared without Arrow, so that a command can name it at once.

A shape is a plain value: the name of a scalar in Arrow, `[shape]` for a list, `{"name": shape}` for a struct, and
`Vector` for numbers of a length that only the model knows.
"""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from common.records import Json

TEXT, INTEGER, NUMBER, FLOAT32, BYTES = "string", "int64", "double", "float", "binary"


@dataclass(frozen=True, slots=True)
class Vector:
    """A vector of numbers; all outputs of a job have the same length."""

    item: str = FLOAT32


#: A scalar's name, `Vector`, a list of one shape, or a dictionary of shapes.
Shape = Any


def _unchanged(output: Json) -> Json:
    return output


@dataclass(frozen=True, slots=True)
class OutputForm:
    """What users get as the output of a record, whether they read JSON, CSV, Parquet or Python objects."""

    shape: Shape
    #: From what `transformers.pipeline` gives, to the values of `shape`. Keys that the shape lacks are ignored.
    convert: Callable[[Json], Json] = _unchanged

    def __str__(self) -> str:
        """Return the type as Arrow writes it, such as `struct<label: string, score: double>`."""
        return _text(self.shape)

    @property
    def is_vector(self) -> bool:
        """Whether an output is one vector."""
        return isinstance(self.shape, Vector)

    @property
    def holds_vectors(self) -> bool:
        """Whether an output is a vector or holds some, so that only the model knows all of its type."""
        return _holds_vectors(self.shape)

    @property
    def holds_files(self) -> bool:
        """Whether an output is a file or holds some, such as images or sound."""
        return _holds_files(self.shape)

    def arrow_type(self, like: Json = None, *, length: int = -1) -> Any:
        """Return the type.

        Args:
            like: an output; vectors have the length of the first one in it.
            length: of vectors, if there is none in `like`; -1 gives lists of any length.
        """
        return _arrow_type(self.shape, _vector_length(like, self.shape) or length)

    def from_json(self, output: Json) -> Json:
        """Return the output whose JSON this is: the bytes in it are in base64.

        Raises:
            ValueError, TypeError, AttributeError: it is not of this form.
        """
        return _from_json(output, self.shape)


def _text(shape: Shape) -> str:
    if isinstance(shape, Vector):
        return f"fixed_size_list<{shape.item}>[n]"
    if isinstance(shape, list):
        return f"list<{_text(shape[0])}>"
    if isinstance(shape, dict):
        return f"struct<{', '.join(f'{name}: {_text(part)}' for name, part in shape.items())}>"
    return str(shape)


def _arrow_type(shape: Shape, length: int) -> Any:
    import pyarrow as pa  # loaded by few commands

    if isinstance(shape, Vector):
        return pa.list_(_arrow_type(shape.item, -1), length)
    if isinstance(shape, list):
        return pa.list_(_arrow_type(shape[0], length))
    if isinstance(shape, dict):
        return pa.struct([(name, _arrow_type(part, length)) for name, part in shape.items()])
    return pa.type_for_alias(shape)


def _holds_vectors(shape: Shape) -> bool:
    if isinstance(shape, list):
        return _holds_vectors(shape[0])
    return any(map(_holds_vectors, shape.values())) if isinstance(shape, dict) else isinstance(shape, Vector)


def _holds_files(shape: Shape) -> bool:
    if isinstance(shape, list):
        return _holds_files(shape[0])
    return any(map(_holds_files, shape.values())) if isinstance(shape, dict) else bool(shape == BYTES)


def _vector_length(output: Json, shape: Shape) -> int | None:
    """Return the length of the first vector in an output, None if there is none."""
    if output is None or not _holds_vectors(shape):
        return None
    if isinstance(shape, Vector):
        return len(output)
    if isinstance(shape, list):
        parts = ((item, shape[0]) for item in output)
    else:
        parts = ((output.get(name), part) for name, part in shape.items())
    return next(filter(None, (_vector_length(*part) for part in parts)), None)


def _from_json(value: Json, shape: Shape) -> Json:
    if value is None or isinstance(shape, Vector):
        return value
    if isinstance(shape, list):
        return [_from_json(item, shape[0]) for item in value]
    if isinstance(shape, dict):
        return {name: _from_json(value.get(name), part) for name, part in shape.items()}
    return base64.b64decode(value, validate=True) if shape == BYTES else value
