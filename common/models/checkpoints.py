"""Complete checkpoints: those with a list of their files, which is written last and atomically.

A process that dies while it writes a checkpoint leaves one without the list, or with files of other sizes; these are
ignored.
"""

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from common.storage.atomic import write_atomic

#: The list of a checkpoint's files and their sizes.
COMPLETE_MARKER = "whole.json"
#: Trainer's own state, in each checkpoint.
_STATE = "trainer_state.json"
_NAME = re.compile(r"^checkpoint-(\d+)$")


def mark_complete(checkpoint: Path) -> None:
    """Mark a checkpoint complete with the files it has now; one that is saved again is marked again."""
    sizes = {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in _files(checkpoint)}
    write_atomic(checkpoint / COMPLETE_MARKER, json.dumps(sizes).encode())


def is_complete(checkpoint: Path) -> bool:
    """Whether every file of the checkpoint's list exists with its size."""
    try:
        found = {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in _files(checkpoint)}
        return has_all_files((checkpoint / COMPLETE_MARKER).read_bytes(), found)
    except OSError:
        return False


def has_all_files(marker: bytes, found: Mapping[str, int]) -> bool:
    """Whether the files `found` (name to size in bytes) include all of a checkpoint's list."""
    try:
        sizes = json.loads(marker)
    except ValueError:
        return False
    return isinstance(sizes, dict) and bool(sizes) and sizes.items() <= found.items()


def remove_incomplete(directory: Path) -> None:
    """Delete the incomplete checkpoints of an attempt: they only take space."""
    for checkpoint in directory.glob("checkpoint-*"):
        if not is_complete(checkpoint):
            shutil.rmtree(checkpoint, ignore_errors=True)


def latest_complete(directories: Iterable[Path]) -> Path | None:
    """Return the complete checkpoint with the most steps in any of the directories."""
    found = sorted(
        (checkpoint for directory in directories for checkpoint in directory.iterdir() if _NAME.match(checkpoint.name)),
        key=step_of,
        reverse=True,
    )
    return next((checkpoint for checkpoint in found if is_complete(checkpoint)), None)


def checkpoint_at_step(checkpoint: Path, steps: int) -> Path | None:
    """Return the complete checkpoint at that step, of the same attempt or another one of the job."""
    name = f"checkpoint-{steps}"
    others = sorted(checkpoint.parent.parent.glob(f"*/{name}"))
    return next((path for path in (checkpoint.parent / name, *others) if is_complete(path)), None)


def step_of(checkpoint: Path) -> int:
    """Return the number of training steps of a checkpoint."""
    match = _NAME.match(checkpoint.name)
    return int(match[1]) if match else -1


def best_step(checkpoint: Path) -> int | None:
    """Return the step with the best evaluation so far, None if nothing was evaluated."""
    try:
        best = json.loads((checkpoint / _STATE).read_text()).get("best_global_step")
    except (OSError, ValueError, AttributeError):
        return None
    return best if isinstance(best, int) else None


def _files(checkpoint: Path) -> Iterator[Path]:
    """Yield the files that the marker lists: not itself, nor hidden ones."""
    files = (path for path in checkpoint.rglob("*") if path.is_file())
    return (path for path in files if path.name != COMPLETE_MARKER and not path.name.startswith("."))
