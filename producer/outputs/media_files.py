"""Results as files in a directory: one for each image and sound of an output, and `results.jsonl`, which names them."""

from dataclasses import replace
from pathlib import Path

from common.errors import UsageError, path_errors
from common.output_types import OutputForm
from common.records import Json
from common.results import ResultLayout, ResultRow
from common.storage.atomic import AtomicFile
from producer.outputs.text import JsonLinesWriter

#: The file that has the rows.
RESULTS = "results.jsonl"
#: Extensions by the first bytes of what tasks give.
_EXTENSIONS = {b"\x89PNG": "png", b"RIFF": "wav", b"fLaC": "flac"}


class MediaFilesWriter(JsonLinesWriter):
    """Writes the bytes in each output to `000000.wav`, by the number of its row, and its name to `results.jsonl`.

    Several files of one row have a second number: `000000-00.png`. `results.jsonl` appears last.
    """

    def __init__(self, path: Path, layout: ResultLayout) -> None:
        """Create a writer, and the directory if there is none.

        Raises:
            UsageError: it cannot be made.
        """
        super().__init__(path, layout)
        with path_errors(f"Cannot write {path.parent}"):
            path.parent.mkdir(exist_ok=True)
        self._rows = 0

    def _write(self, row: ResultRow) -> None:
        if row.outcome is not None and row.output is not None:
            names = self._names(_count_files(row.output))
            row = replace(row, outcome=replace(row.outcome, output=self._with_names(row.output, names)))
        self._rows += 1
        super()._write(row)

    def _names(self, count: int) -> list[str]:
        stem = f"{self._rows:06d}"
        return [stem] if count == 1 else [f"{stem}-{number:02d}" for number in range(count)]

    def _with_names(self, value: Json, names: list[str]) -> Json:
        """Return an output with the names of files instead of their bytes; write them."""
        if isinstance(value, dict):
            return {key: self._with_names(part, names) for key, part in value.items()}
        if isinstance(value, list):
            return [self._with_names(part, names) for part in value]
        if not isinstance(value, bytes):
            return value
        name = f"{names.pop(0)}.{_EXTENSIONS.get(value[:4], 'bin')}"
        with AtomicFile(self.path.parent / name) as file:
            file.stream.write(value)
        return name


def check_media_directory(directory: Path, form: OutputForm | None) -> None:
    """Check that results can be written as files in a directory, without changing anything.

    Raises:
        UsageError: the outputs hold no files, or the directory cannot be made.
    """
    if form is None or not form.holds_files:
        raise UsageError(
            f"--output-format files is for tasks that give images or sound; an output of this task is {form or 'JSON'}."
        )
    with path_errors(f"{directory} cannot be written"):
        if not directory.is_dir() and not directory.parent.is_dir():
            raise UsageError(f"There is no directory {directory.parent}; create it first, or write elsewhere.")


def _count_files(value: Json) -> int:
    if isinstance(value, dict | list):
        return sum(map(_count_files, value.values() if isinstance(value, dict) else value))
    return int(isinstance(value, bytes))
