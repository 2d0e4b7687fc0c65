"""Which checkpoints are whole: those with a list of their files, written last and put in place by a rename.

A process that dies while it writes a checkpoint leaves one without the list, or with files of another size; such are
passed over.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

#: The list of a checkpoint's files and their sizes.
WHOLE = "whole.json"
_NAME = re.compile(r"^checkpoint-(\d+)$")


def seal(checkpoint: Path) -> None:
    """Say that a checkpoint is whole: all that is in it now."""
    sizes = {str(path.relative_to(checkpoint)): path.stat().st_size for path in _files(checkpoint)}
    aside = checkpoint / f".{WHOLE}.{os.getpid()}"
    aside.write_text(json.dumps(sizes))
    aside.replace(checkpoint / WHOLE)


def is_whole(checkpoint: Path) -> bool:
    """Whether every file of the checkpoint's list is there, in its size."""
    try:
        sizes = json.loads((checkpoint / WHOLE).read_text())
        return bool(sizes) and all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def latest_whole(directories: Iterable[Path]) -> Path | None:
    """Return the whole checkpoint with the most steps in any of the directories."""
    found = sorted(
        (checkpoint for directory in directories for checkpoint in directory.iterdir() if _NAME.match(checkpoint.name)),
        key=steps_of,
        reverse=True,
    )
    return next((checkpoint for checkpoint in found if is_whole(checkpoint)), None)


def sibling(checkpoint: Path, steps: int) -> Path | None:
    """Return the whole checkpoint at that step, of the same attempt or of another one of the job."""
    name = f"checkpoint-{steps}"
    others = sorted(checkpoint.parent.parent.glob(f"*/{name}"))
    return next((path for path in (checkpoint.parent / name, *others) if is_whole(path)), None)


def steps_of(checkpoint: Path) -> int:
    """Return how many steps lie behind a checkpoint."""
    match = _NAME.match(checkpoint.name)
    return int(match[1]) if match else -1


def _files(checkpoint: Path) -> Iterator[Path]:
    return (path for path in checkpoint.rglob("*") if path.is_file() and not path.name.startswith("."))
