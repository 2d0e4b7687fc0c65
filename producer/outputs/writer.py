"""What all writers share: rows in, a whole file or none at the end."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from common.results import ResultRow
from common.storage.atomic import AtomicFile, write_errors


class Writer(ABC):
    """Writes rows in the order they come. The file is there when the `with` block ends well, and else not at all.

    Raises:
        HugqueueError: from any method, if the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        with write_errors(self.path):
            self._aside = AtomicFile(self.path)
        try:
            with write_errors(self.path):
                self._begin(self._aside)
        except BaseException:
            self._aside.discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with write_errors(self.path):
                    self._finish()
                    self._commit()
        finally:
            self._discard()

    def write_all(self, rows: Iterable[ResultRow]) -> int:
        """Write rows one after the other, as they come; return how many there were."""
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
    def _begin(self, aside: AtomicFile) -> None:
        """Write what stands before the rows."""

    @abstractmethod
    def _write(self, row: ResultRow) -> None:
        """Write one row."""

    @abstractmethod
    def _finish(self) -> None:
        """Write what stands behind the rows."""

    def _commit(self) -> None:
        self._aside.commit()

    def _discard(self) -> None:
        self._aside.discard()
