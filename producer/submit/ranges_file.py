"""Ranges of vectors from a file or from Python: they become parameters of the job, so that workers open no file."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.display_text import one_line
from common.errors import UsageError, path_errors
from common.records import Json
from common.vector_ranges import Ranges, is_ranges, short_floats

#: Far more than two rows of numbers take.
_MAX_BYTES = 16 * 1024 * 1024
_EXPECTED = "two rows of numbers, the minimum and the maximum of each dimension"


def with_ranges(params: Mapping[str, Json]) -> dict[str, Json]:
    """Return the parameters with the ranges that `ranges` names: a file, or two rows of numbers.

    Raises:
        UsageError: the file cannot be read, or holds something else.
    """
    value = params.get("ranges")
    if value is None or is_ranges(value):
        return dict(params)
    if isinstance(value, str | os.PathLike):
        found = read_ranges(Path(value))
    else:
        found = _ranges(_rows(value), "the parameters", "ranges")
    return {**params, "ranges": found.as_dict()}


def read_ranges(path: Path) -> Ranges:
    """Return the ranges in a file: `.npy` with an array of shape (2, dimensions), or JSON.

    JSON is `[[minimum, ...], [maximum, ...]]`, or an object with `min` and `max`, as `ranges` of a job's status.

    Raises:
        UsageError: the file cannot be read, or holds something else.
    """
    where = f"ranges={path}"
    with path_errors(f"{where} cannot be read"):
        if path.stat().st_size > _MAX_BYTES:
            raise UsageError(f"{where}: expected {_EXPECTED}, found a file of {path.stat().st_size:,} bytes.")
        data = path.read_bytes()
    return _ranges(
        _parse_npy(data, where) if path.suffix.lower() == ".npy" else _parse_json(data, where), path.name, where
    )


def _parse_npy(data: bytes, where: str) -> Any:
    import io

    import numpy as np

    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError) as error:
        raise UsageError(f"{where} is not a .npy file with numbers: {one_line(str(error), 200)}.") from error


def _parse_json(data: bytes, where: str) -> Any:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON: {one_line(str(error), 200)}. Name a .json or .npy file.") from error
    return _rows(value)


def _rows(value: Json) -> Any:
    is_object = isinstance(value, Mapping) and {"min", "max"} <= value.keys()
    return [value["min"], value["max"]] if is_object else value


def _ranges(rows: Any, source: str, where: str) -> Ranges:
    import numpy as np

    try:
        found = np.asarray(rows)
    except ValueError:  # rows of unequal lengths
        raise UsageError(f"{where}: expected {_EXPECTED}, found rows of different lengths.") from None
    if found.ndim != 2 or len(found) != 2 or found.dtype.kind not in "fiu" or not found.shape[1]:
        what = f"an array of shape {found.shape}" if found.ndim and found.dtype.kind in "fiu" else "something else"
        raise UsageError(f"{where}: expected {_EXPECTED}, found {what}.")
    with np.errstate(over="ignore"):  # refused below, as infinity
        low, high = found.astype(np.float32)
    try:
        return Ranges(one_line(source, 500), short_floats(low), short_floats(high))
    except ValueError as error:
        raise UsageError(f"{where}: {error}.") from error
