"""Where fine-tuned models and their checkpoints lie, in a directory.

    STORE/<job>/model.json             which of the job's models counts, and what it is
    STORE/<job>/<attempt>/             a whole model: its own model.json is written last
    STORE/<job>/work/<attempt>/        checkpoints of an unfinished attempt

Knows no Redis: whoever reaches the store can use its models.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import ModelError, UsageError, path_errors
from common.jobs import JOB_ID
from common.records import Json
from common.storage.atomic import write_atomic

#: The file that makes a model whole.
METADATA_FILE = "model.json"
#: Where the attempts of a job keep what is not yet a model.
CHECKPOINTS_DIR = "work"
_ATTEMPT = re.compile(r"^[\w-]+$", re.ASCII)
_ORDER = re.compile(r"^(\d+)-(\d+)-", re.ASCII)


@dataclass(frozen=True, slots=True)
class RegisteredModel:
    """A model in the store."""

    job_id: str
    attempt: str
    card: Mapping[str, Json]  #: what its model.json says


def attempt_order(name: str) -> tuple[int, int]:
    """Return which came later of two attempts, or of paths that begin with one: `ROUND-ATTEMPT-HOLDER`."""
    match = _ORDER.match(name)
    return (int(match[1]), int(match[2])) if match else (-1, -1)


class ModelRegistry:
    """A store in a directory."""

    #: Whether others see what lies in `attempt_dir` only once `upload_checkpoint` and `add_model` have uploaded it.
    uploads = False

    def __init__(self, root: Path) -> None:
        self.root = root

    def attempt_dir(self, job_id: str, attempt: str) -> Path:
        """Return a directory for an attempt's checkpoints, made if need be."""
        directory = self._path(job_id, CHECKPOINTS_DIR, attempt)
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def checkpoint_dirs(self, job_id: str) -> list[Path]:
        """Return the directories in which attempts of the job may have left checkpoints."""
        folder = self.root / job_id / CHECKPOINTS_DIR
        return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []

    def evict_stale(self, job_id: str) -> None:
        """Forget what other jobs than this one left on this machine and nobody needs: here that is nothing."""

    def upload_checkpoint(self, job_id: str, attempt: str, checkpoint: Path) -> None:
        """Have other machines see a checkpoint that was just written: here they do."""

    def add_model(self, job_id: str, attempt: str, directory: Path) -> None:
        """Take a finished model, a directory below `attempt_dir`, into the store."""
        mode = (directory / METADATA_FILE).stat().st_mode
        for path in directory.iterdir():  # safetensors writes files that only their owner can read
            path.chmod(mode)
        directory.replace(self._path(job_id, attempt))

    def choose(self, job_id: str, attempt: str) -> None:
        """Make this attempt's model the one that counts, and forget the work that led to it."""
        card = (self._path(job_id, attempt) / METADATA_FILE).read_text()
        card = json.dumps({**json.loads(card), "attempt": attempt})
        write_atomic(self.root / job_id / METADATA_FILE, card.encode())
        shutil.rmtree(self.root / job_id / CHECKPOINTS_DIR, ignore_errors=True)

    def delete_model(self, job_id: str, attempt: str) -> None:
        """Forget the model of an attempt that does not count."""
        shutil.rmtree(self.root / job_id / attempt, ignore_errors=True)

    def models(self) -> list[RegisteredModel]:
        """Return all models that count, by job."""
        if not self.root.is_dir():
            return []
        names = sorted(path.name for path in self.root.iterdir() if JOB_ID.match(path.name))
        return [model for model in map(self.find, names) if model is not None]

    def find(self, job_id: str) -> RegisteredModel | None:
        """Return the model of a job; None if it has none.

        A worker that died after its commit chose none: then it is the whole one of the latest attempt.
        """
        folder = self.root / job_id
        chosen = _read_card(folder / METADATA_FILE)
        if chosen is not None and _ATTEMPT.match(str(chosen.get("attempt"))):
            return RegisteredModel(job_id, str(chosen["attempt"]), chosen)
        whole = sorted(folder.glob(f"*/{METADATA_FILE}"), key=lambda path: attempt_order(path.parent.name))
        card = _read_card(whole[-1]) if whole else None
        return RegisteredModel(job_id, whole[-1].parent.name, card) if card is not None else None

    def fetch(self, job_id: str) -> Path:
        """Return a directory on this machine that holds the job's model.

        Raises:
            ModelError: `model_not_found`, the job has no model here.
            UsageError: it is a link.
        """
        return self._path(job_id, self._require(job_id).attempt)

    def export(self, job_id: str, target: Path) -> None:
        """Copy the job's model into the directory `target`, whole or not at all.

        Raises:
            ModelError: `model_not_found`, the job has no model here.
            UsageError: the target exists, or cannot be written.
        """
        source = self.fetch(job_id)
        with path_errors(f"{target} cannot be written"):
            there = target.exists()
        if there:
            raise UsageError(f"{target} exists; name a directory that does not.")
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            shutil.copytree(source, temporary)
            temporary.replace(target)
        except OSError as error:
            raise UsageError(f"{target} cannot be written: {error.strerror or error}.") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _path(self, *parts: str) -> Path:
        """Return a directory of the store. Links below its root are not followed: they could lead anywhere.

        Raises:
            UsageError: there is one.
        """
        place = self.root
        for part in parts:
            place = place / part
            if place.is_symlink():
                raise UsageError(f"{place} is a link; the directories of a model store must not be links.")
        return place

    def _require(self, job_id: str) -> RegisteredModel:
        model = self.find(job_id)
        if model is None:
            raise ModelError("model_not_found", f"job:{job_id}: the store {self} holds no model of that job.")
        return model

    def __str__(self) -> str:
        return str(self.root)


def _read_card(path: Path) -> dict[str, Json] | None:
    try:
        card = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return card if isinstance(card, dict) else None
