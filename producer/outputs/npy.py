"""Vectors as a `.npy` matrix of float32, a row for every record.

Written without numpy: the format is a header of fixed length and the numbers (numpy/lib/format.py, version 1.0).
"""

import sys
from array import array
from pathlib import Path

from common.errors import HugqueueError
from common.json_codec import to_json
from common.records import Json
from common.results import ResultRow
from common.storage.atomic import AtomicFile, write_errors
from producer.outputs.writer import Writer

_HEADER_BYTES = 128  # room for any shape; numbers begin at a multiple of 64


def errors_path(path: Path) -> Path:
    """Return where the failures of `path` are told: beside it."""
    return path.with_name(f"{path.name}.errors.jsonl")


class NpyWriter(Writer):
    """A failed record is a row of NaN; `FILE.errors.jsonl` beside it says why, and is there only if one failed."""

    def _begin(self, aside: AtomicFile) -> None:
        self._stream = aside.stream
        self._stream.write(bytes(_HEADER_BYTES))  # the shape is known at the end
        self._errors: AtomicFile | None = None
        self._rows = 0
        self._width: int | None = None  # unknown until the first record that succeeded
        self._nan_row = b""

    def _write(self, row: ResultRow) -> None:
        if row.error:
            self._note(row)
            self._stream.write(self._nan_row)
        else:
            numbers = self._numbers(row)
            if self._width is None:
                self._set_width(len(numbers))
            if len(numbers) != self._width:
                raise HugqueueError(f"{self.path}: a vector of {len(numbers)} numbers among those of {self._width}.")
            self._stream.write(_little_endian(numbers))
        self._rows += 1

    def _finish(self) -> None:
        self._stream.seek(0)
        self._stream.write(_header(self._rows, self._width or 0))

    def _commit(self) -> None:
        if self._errors:
            with write_errors(errors_path(self.path)):
                self._errors.commit()
        super()._commit()
        if not self._errors:
            errors_path(self.path).unlink(missing_ok=True)  # it would tell of the file that was here before

    def _discard(self) -> None:
        if self._errors:
            self._errors.discard()
        super()._discard()

    def _note(self, row: ResultRow) -> None:
        if self._errors is None:
            with write_errors(errors_path(self.path)):
                self._errors = AtomicFile(errors_path(self.path))
        error = row.error.as_dict() if row.error else None
        line = to_json({"row": self._rows, "id": row.id, "input": row.input, "error": error})
        self._errors.stream.write(line.encode() + b"\n")

    def _numbers(self, row: ResultRow) -> "array[float]":
        try:
            return array("f", row.output)
        except (TypeError, ValueError, OverflowError) as error:
            raise HugqueueError(
                f"{self.path}: .npy holds one vector of numbers for each record; the output of record "
                f"{to_json(row.id)} is {_kind(row.output)}. Write .jsonl, .csv or .parquet."
            ) from error

    def _set_width(self, width: int) -> None:
        self._width = width
        self._nan_row = _little_endian(array("f", [float("nan")]) * width)
        for _ in range(self._rows):  # those before were all failures
            self._stream.write(self._nan_row)


def _kind(value: Json) -> str:
    if isinstance(value, list):
        return f"a list of {type(value[0]).__name__}" if value else "an empty list"
    return f"a {type(value).__name__}"


def _little_endian(numbers: "array[float]") -> bytes:
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()


def _header(rows: int, width: int) -> bytes:
    words = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}"
    start = b"\x93NUMPY\x01\x00" + (_HEADER_BYTES - 10).to_bytes(2, "little")
    return start + words.ljust(_HEADER_BYTES - len(start) - 1).encode() + b"\n"
