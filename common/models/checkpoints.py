"""Which checkpoints are whole: those with a list of their files, written last and put in place by a rename.

A process that dies while it writes a checkpoint leaves one without the list, or with files of another size; such are
passed over.
"""

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from common.storage.atomic import write_atomic

#: The list of a checkpoint's files and their sizes.
COMPLETE_MARKER = "whole.json"
#: What Trainer writes of itself into each checkpoint.
_STATE = "trainer_state.json"
_NAME = re.compile(r"^checkpoint-(\d+)$")


def mark_complete(checkpoint: Path) -> None:
    """Mark a checkpoint complete with the files it has now; one that is saved again is marked again."""
    sizes = {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in _files(checkpoint)}
    write_atomic(checkpoint / COMPLETE_MARKER, json.dumps(sizes).encode())


def is_complete(checkpoint: Path) -> bool:
    """Whether every file of the checkpoint's list is there, in its size."""
    try:
        found = {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in _files(checkpoint)}
        return has_all_files((checkpoint / COMPLETE_MARKER).read_bytes(), found)
    except OSError:
        return False


def has_all_files(marker: bytes, found: Mapping[str, int]) -> bool:
    """Whether the files `found` (name to size in bytes) have all that a checkpoint's list, as it was read, names."""
    try:
        sizes = json.loads(marker)
    except ValueError:
        return False
    return isinstance(sizes, dict) and bool(sizes) and sizes.items() <= found.items()


def remove_incomplete(directory: Path) -> None:
    """Delete the checkpoints of an attempt that are not whole: nobody will go on from them, and they take room."""
    for checkpoint in directory.glob("checkpoint-*"):
        if not is_complete(checkpoint):
            shutil.rmtree(checkpoint, ignore_errors=True)


def latest_complete(directories: Iterable[Path]) -> Path | None:
    """Return the whole checkpoint with the most steps in any of the directories."""
    found = sorted(
        (checkpoint for directory in directories for checkpoint in directory.iterdir() if _NAME.match(checkpoint.name)),
        key=step_of,
        reverse=True,
    )
    return next((checkpoint for checkpoint in found if is_complete(checkpoint)), None)


def checkpoint_at_step(checkpoint: Path, steps: int) -> Path | None:
    """Return the whole checkpoint at that step, of the same attempt or of another one of the job."""
    name = f"checkpoint-{steps}"
    others = sorted(checkpoint.parent.parent.glob(f"*/{name}"))
    return next((path for path in (checkpoint.parent / name, *others) if is_complete(path)), None)


def step_of(checkpoint: Path) -> int:
    """Return how many steps lie behind a checkpoint."""
    match = _NAME.match(checkpoint.name)
    return int(match[1]) if match else -1


def best_step(checkpoint: Path) -> int | None:
    """Return after how many steps the model was best, as the checkpoint has it; None if nothing was evaluated."""
    try:
        best = json.loads((checkpoint / _STATE).read_text()).get("best_global_step")
    except (OSError, ValueError, AttributeError):
        return None
    return best if isinstance(best, int) else None


def _files(checkpoint: Path) -> Iterator[Path]:
    """Yield the files that the marker lists: not itself, nor hidden ones."""
    files = (path for path in checkpoint.rglob("*") if path.is_file())
    return (path for path in files if path.name != COMPLETE_MARKER and not path.name.startswith("."))
