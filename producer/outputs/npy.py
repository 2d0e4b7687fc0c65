"""Vectors as a `.npy` matrix, one row per record, of the numbers that the vectors have."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.errors import HugqueueError
from common.json_codec import to_json
from common.output_types import FLOAT32, OutputForm
from common.records import Json
from common.results import ResultRow
from common.storage.atomic import AtomicFile, write_errors
from producer.outputs.writer import Writer


def errors_path(path: Path) -> Path:
    """Return the file next to `path` that explains its failed records."""
    return path.with_name(f"{path.name}.errors.jsonl")


class NpyWriter(Writer):
    """A failed record is a row of NaN (of zeros in a matrix of integers), explained in `FILE.errors.jsonl`.

    That file exists only if a record failed.
    """

    def __init__(self, path: Path, form: OutputForm | None = None) -> None:
        """Create a writer for vectors of that form; those of a form that is not known become float32."""
        super().__init__(path)
        numbers = form.shape.item if form is not None and form.is_vector else FLOAT32
        self._dtype = np.dtype(pa.type_for_alias(numbers).to_pandas_dtype()).newbyteorder("<")

    def _begin(self, file: AtomicFile) -> None:
        self._stream = file.stream
        self._errors: AtomicFile | None = None
        self._rows = 0
        self._width = 0  # until the first record that succeeds
        self._write_header()

    def _write_header(self) -> None:
        # numpy pads the header so that its length depends neither on the rows nor, up to 10 ** 20, on the width.
        shape = (self._rows, self._width)
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._stream, header)

    def _write(self, row: ResultRow) -> None:
        if row.error:
            self._write_error(row)
            self._write_missing(1)
        else:
            vector = self._vector(row)
            if not self._width:
                self._width = len(vector)
                self._write_missing(self._rows)  # the records before were all failures
            if len(vector) != self._width:
                raise HugqueueError(f"{self.path}: found a vector of {len(vector)} numbers, expected {self._width}.")
            self._stream.write(vector.tobytes())
        self._rows += 1

    def _write_missing(self, rows: int) -> None:
        value = np.nan if self._dtype.kind == "f" else 0
        self._stream.write(np.full(rows * self._width, value, self._dtype).tobytes())

    def _finish(self) -> None:
        self._stream.seek(0)
        self._write_header()

    def _commit(self) -> None:
        if self._errors:
            with write_errors(errors_path(self.path)):
                self._errors.commit()
        super()._commit()
        if not self._errors:
            errors_path(self.path).unlink(missing_ok=True)  # left by an earlier file of this name

    def _discard(self) -> None:
        if self._errors:
            self._errors.discard()
        super()._discard()

    def _write_error(self, row: ResultRow) -> None:
        if self._errors is None:
            with write_errors(errors_path(self.path)):
                self._errors = AtomicFile(errors_path(self.path))
        code, message = (row.error.code, row.error.message) if row.error else (None, None)
        line = {"row": self._rows, "id": row.id, "input": row.input, "error_code": code, "error_message": message}
        self._errors.stream.write(to_json(line).encode() + b"\n")

    def _vector(self, row: ResultRow) -> NDArray[Any]:
        try:
            vector = np.asarray(row.output)
            if vector.ndim == 1 and vector.dtype.kind in "fiu":
                return vector.astype(self._dtype)
        except ValueError:  # lists of unequal lengths
            pass
        raise HugqueueError(
            f"{self.path}: .npy holds one vector of numbers per record; the output of record {to_json(row.id)} is "
            f"{_describe(row.output)}. Write .jsonl, .csv or .parquet instead."
        )


def _describe(value: Json) -> str:
    if isinstance(value, list):
        return f"a list of {type(value[0]).__name__}" if value else "an empty list"
    return f"a {type(value).__name__}"
