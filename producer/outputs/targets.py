"""Where `-o` leads: to one file, or to a directory (an address) of parts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.errors import StorageError, UsageError, path_errors
from common.jobs import JobSpec, Output
from common.settings import Settings, absolute
from common.storage.locations import is_shared, is_url, strip_file_scheme
from common.tasks import Task, find_task
from producer.outputs.formats import check_output, is_csv, is_file_name


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One file on this machine for all results."""

    path: Path
    csv_safe: bool = False  #: whether cells of CSV that a spreadsheet would run are escaped

    def __str__(self) -> str:
        """Return its path."""
        return str(self.path)


Target = OutputFile | Output


def target_name(target: Target) -> str:
    """Return the target as messages name it."""
    return f"{target.address}/" if isinstance(target, Output) else str(target)


#: Of the parts in a directory, where none is asked for.
PART_FORMAT = "parquet"


def parse_target(
    text: str | Path | None, format: str | None, *, csv_safe: bool = False, responses: bool = False
) -> Target | None:
    """Return the directory of parts that `-o` names by a slash at its end, by being there, or by an address; or a file.

    Args:
        text: what `-o` says; None: nothing.
        format: how parts are written.
        csv_safe: whether cells of CSV that a spreadsheet would run are escaped.
        responses: whether the outcomes are responses to a batch file.

    Raises:
        UsageError: the format of parts is named, and it is no directory; `csv_safe` is set, and it is not CSV; or it is
            a file at an address, or one that cannot hold responses.
    """
    if text is None:
        if format is not None:
            raise UsageError("--output-format says how the parts in a directory are written; name it with -o DIR/.")
        if csv_safe:
            raise UsageError("--csv-safe says how a CSV file is written; name it with -o FILE.csv.")
        return None
    if not str(text):
        raise UsageError("-o: the name is empty; name a file, or a directory as DIR/.")
    target = _target_of(strip_file_scheme(str(text)), format)
    if responses:
        check_responses(target)
    if not csv_safe:
        return target
    if not isinstance(target, OutputFile) or not is_csv(target.path):
        raise UsageError(f"--csv-safe is for CSV files; {target_name(target)} is not one.")
    return replace(target, csv_safe=True)


def _target_of(name: str, format: str | None) -> Target:
    if is_url(name) and is_file_name(name):
        raise UsageError(
            f"{name}: at an address, a directory of parts is written; name one, as {name}/, or a file of this machine."
        )
    with path_errors(f"-o {name}"):
        is_directory = name.endswith("/") or is_url(name) or Path(name).is_dir()
    if is_directory:
        return Output(absolute(name).rstrip("/"), format or PART_FORMAT)
    if format is not None:
        raise UsageError(
            f"--output-format is for directories (-o {name}/); the extension of a file says how it is written."
        )
    return OutputFile(Path(name))


def open_target(text: str | Path | None, format: str | None, spec: JobSpec, *, csv_safe: bool = False) -> Target | None:
    """Return where the outcomes of a job go, as `parse_target`, once it is known that they can be written there.

    Raises:
        UsageError: as `parse_target` and `check_target`.
    """
    target = parse_target(text, format, csv_safe=csv_safe, responses=spec.format is not None)
    if target is not None:
        check_target(target, find_task(spec.task))
    return target


def check_responses(target: Target) -> None:
    """Check that responses to a batch file can be written so.

    Raises:
        UsageError: it is a directory, or no file of JSON lines.
    """
    name = target.path.name if isinstance(target, OutputFile) else ""
    if not name.lower().endswith((".jsonl", ".jsonl.gz")):
        raise UsageError(
            f"{target_name(target)}: responses to a batch file are JSON lines; name a .jsonl or .jsonl.gz file."
        )


def check_target(target: Target, task: Task, inputs: Sequence[str] = (), *, begun: bool = False) -> None:
    """Check that the outcomes can be written there, touching nothing; `begun`: parts that are there may be the job's.

    Raises:
        UsageError: they cannot; of a directory: it holds an output already, or files cannot be written there.
    """
    if isinstance(target, OutputFile):
        check_output(target.path, task, inputs)
        return
    from common.payloads.output_committer import check_output_location

    try:
        check_output_location(target.address, begun=begun)
    except StorageError as error:
        raise UsageError(error.message) from error


def written_by_workers(target: Target | None, settings: Settings) -> Output | None:
    """Return the target if it is one that workers write themselves: a directory that they all reach."""
    if not isinstance(target, Output):
        return None
    return target if settings.embedded or is_shared(target.address, settings.shared) else None
