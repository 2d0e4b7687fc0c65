"""Base class of the writers: rows go in, and a complete file or none comes out."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from common.results import ResultRow
from common.storage.atomic import AtomicFile, write_errors


class Writer(ABC):
    """Writes rows in order. The file appears when the `with` block ends without an exception, and otherwise never.

    Raises:
        HugqueueError: from any method, if the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        with write_errors(self.path):
            self._file = AtomicFile(self.path)
        try:
            with write_errors(self.path):
                self._begin(self._file)
        except BaseException:
            self._file.discard()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                with write_errors(self.path):
                    self._finish()
                    self._commit()
        finally:
            self._discard()

    def write_all(self, rows: Iterable[ResultRow]) -> int:
        """Write all rows; return how many there were."""
        written = 0
        for row in rows:
            self.write(row)
            written += 1
        return written

    def write(self, row: ResultRow) -> None:
        """Write one row."""
        with write_errors(self.path):
            self._write(row)

    @abstractmethod
    def _begin(self, file: AtomicFile) -> None:
        """Write what precedes the rows."""

    @abstractmethod
    def _write(self, row: ResultRow) -> None:
        """Write one row."""

    @abstractmethod
    def _finish(self) -> None:
        """Write what follows the rows."""

    def _commit(self) -> None:
        self._file.commit()

    def _discard(self) -> None:
        self._file.discard()
