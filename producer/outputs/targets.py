"""Where `-o` leads: to one file, or to a directory (an address) of parts."""

from collections.abc import Sequence
from pathlib import Path

from common.errors import StorageError, UsageError
from common.settings import Settings, absolute
from common.shared import is_address, is_shared
from common.tasks import Task
from common.values import Output
from producer.outputs.opening import check_output

Target = Path | Output

#: Of the parts in a directory, where none is asked for.
PART_FORMAT = "parquet"


def parse_target(text: str | Path, format: str | None) -> Target:
    """Return the directory of parts that `-o` names by a slash at its end, by being there, or by an address; or a file.

    Raises:
        UsageError: the format of parts is named, and it is no directory.
    """
    name = str(text)
    if name.endswith("/") or is_address(name) or Path(name).is_dir():
        return Output(absolute(name).rstrip("/"), format or PART_FORMAT)
    if format is not None:
        raise UsageError(
            f"--output-format is for directories (-o {name}/); the extension of a file says how it is written."
        )
    return Path(name)


def open_target(text: str | Path | None, format: str | None, task: Task, inputs: Sequence[str] = ()) -> Target | None:
    """Return where the outcomes go, once it is known that they can be written there; None if nowhere.

    Raises:
        UsageError: they cannot be.
    """
    if text is None:
        if format is not None:
            raise UsageError("--output-format says how the parts in a directory are written; name it with -o DIR/.")
        return None
    target = parse_target(text, format)
    check_target(target, task, inputs)
    return target


def check_target(target: Target, task: Task, inputs: Sequence[str] = ()) -> None:
    """Check that the outcomes can be written there, touching nothing.

    Raises:
        UsageError: they cannot; of a directory: it holds an output already, or files cannot be written there.
    """
    if isinstance(target, Path):
        check_output(target, task, inputs)
        return
    from common.output_parts import check_output_place

    try:
        check_output_place(target.address)
    except StorageError as error:
        raise UsageError(error.message) from error


def by_workers(target: Target | None, settings: Settings) -> Output | None:
    """Return the target if it is one that workers write themselves: a directory that they all reach."""
    if not isinstance(target, Output):
        return None
    return target if settings.embedded or is_shared(target.address, settings.shared) else None
