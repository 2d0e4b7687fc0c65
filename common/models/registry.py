"""The model registry: fine-tuned models and their checkpoints, in a directory or at a URL.

    REGISTRY/<job>/model.json             which of the job's models counts, and its metadata
    REGISTRY/<job>/<attempt>/             a complete model: its own model.json is written last
    REGISTRY/<job>/work/<attempt>/        checkpoints of an unfinished attempt

It does not use Redis: any process that can open the registry can use its models.
"""

import contextlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from common.errors import MissingStorageLibrary, ModelError, StorageError, UsageError, path_errors
from common.jobs import JOB_ID
from common.models.checkpoints import (
    COMPLETE_MARKER,
    best_step,
    checkpoint_at_step,
    has_all_files,
    latest_complete,
    step_of,
)
from common.records import Json
from common.settings import Settings
from common.storage.atomic import write_atomic
from common.storage.locations import is_url, local_path
from common.storage.storage import RemoteStorage

#: The file that makes a model complete.
METADATA_FILE = "model.json"
#: Folder for the checkpoints of a job's attempts.
CHECKPOINTS_DIR = "work"
_ATTEMPT = re.compile(r"^[\w-]+$", re.ASCII)
_ORDER = re.compile(r"^(\d+)-(\d+)-", re.ASCII)
#: Seconds after which unused copies of checkpoints are deleted from this machine.
_STALE_SECONDS = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class RegisteredModel:
    """A fine-tuned model."""

    job_id: str
    attempt: str
    card: Mapping[str, Json]  #: what its model.json says


def attempt_order(name: str) -> tuple[int, int]:
    """Return the sort key of an attempt, `ROUND-ATTEMPT-HOLDER`, or of a path that begins with one."""
    match = _ORDER.match(name)
    return (int(match[1]), int(match[2])) if match else (-1, -1)


class ModelRegistry:
    """Models in a directory."""

    #: Whether other machines see files of `attempt_dir` only after `upload_checkpoint` and `add_model`.
    uploads = False

    def __init__(self, root: Path) -> None:
        self.root = root

    def attempt_dir(self, job_id: str, attempt: str) -> Path:
        """Return the directory of an attempt's checkpoints, created if necessary."""
        directory = self._path(job_id, CHECKPOINTS_DIR, attempt)
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def checkpoint_dirs(self, job_id: str) -> list[Path]:
        """Return the directories in which attempts of the job may have left checkpoints."""
        folder = self.root / job_id / CHECKPOINTS_DIR
        return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []

    def evict_stale(self, job_id: str) -> None:
        """Delete unneeded copies that jobs other than this one left on this machine; a directory has none."""

    def upload_checkpoint(self, job_id: str, attempt: str, checkpoint: Path) -> None:
        """Make a new checkpoint visible to other machines; in a directory it is already."""

    def add_model(self, job_id: str, attempt: str, directory: Path) -> None:
        """Add a finished model, a directory in `attempt_dir`."""
        mode = (directory / METADATA_FILE).stat().st_mode
        for path in directory.iterdir():  # safetensors' files are readable by their owner only
            path.chmod(mode)
        directory.replace(self._path(job_id, attempt))

    def promote(self, job_id: str, attempt: str) -> None:
        """Make this attempt's model the job's model, and delete the job's checkpoints."""
        card = (self._path(job_id, attempt) / METADATA_FILE).read_text()
        card = json.dumps({**json.loads(card), "attempt": attempt})
        write_atomic(self.root / job_id / METADATA_FILE, card.encode())
        shutil.rmtree(self.root / job_id / CHECKPOINTS_DIR, ignore_errors=True)

    def delete_model(self, job_id: str, attempt: str) -> None:
        """Delete the model of an attempt that was not promoted."""
        shutil.rmtree(self.root / job_id / attempt, ignore_errors=True)

    def models(self) -> list[RegisteredModel]:
        """Return the model of each job that has one."""
        if not self.root.is_dir():
            return []
        names = sorted(path.name for path in self.root.iterdir() if JOB_ID.match(path.name))
        return [model for model in map(self.find, names) if model is not None]

    def find(self, job_id: str) -> RegisteredModel | None:
        """Return the model of a job; None if it has none.

        If the worker died after its commit and before `promote`, it is the complete one of the latest attempt.
        """
        folder = self.root / job_id
        chosen = _read_card(folder / METADATA_FILE)
        if chosen is not None and _ATTEMPT.match(str(chosen.get("attempt"))):
            return RegisteredModel(job_id, str(chosen["attempt"]), chosen)
        complete = sorted(folder.glob(f"*/{METADATA_FILE}"), key=lambda path: attempt_order(path.parent.name))
        card = _read_card(complete[-1]) if complete else None
        return RegisteredModel(job_id, complete[-1].parent.name, card) if card is not None else None

    def fetch(self, job_id: str) -> Path:
        """Return the directory on this machine that holds the job's model.

        Raises:
            ModelError: `model_not_found`, the job has no model here.
            UsageError: the directory is a link.
        """
        return self._path(job_id, self._require(job_id).attempt)

    def export(self, job_id: str, target: Path) -> None:
        """Copy the job's model to the directory `target`, complete or not at all.

        Raises:
            ModelError: `model_not_found`, the job has no model here.
            UsageError: the target exists, or cannot be written.
        """
        source = self.fetch(job_id)
        with path_errors(f"{target} cannot be written"):
            there = target.exists()
        if there:
            raise UsageError(f"{target} exists already; name a new directory.")
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            shutil.copytree(source, temporary)
            temporary.replace(target)
        except OSError as error:
            raise UsageError(f"{target} cannot be written: {error.strerror or error}.") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _path(self, *parts: str) -> Path:
        """Return a path in the registry. Links below its root are refused, since they could lead to any file.

        Raises:
            UsageError: there is one.
        """
        path = self.root
        for part in parts:
            path = path / part
            if path.is_symlink():
                raise UsageError(f"{path} is a link; the directories of a model registry must not be links.")
        return path

    def _require(self, job_id: str) -> RegisteredModel:
        model = self.find(job_id)
        if model is None:
            raise ModelError("model_not_found", f"job:{job_id}: the model registry {self} has no model of that job.")
        return model

    def __str__(self) -> str:
        return str(self.root)


class RemoteModelRegistry(ModelRegistry):
    """Models at a URL that fsspec opens; `root` is a directory of this machine that caches what is used."""

    uploads = True

    def __init__(self, url: str, cache: Path) -> None:
        super().__init__(cache)
        self._url = url.rstrip("/")
        self._storage = RemoteStorage(self._url)

    def evict_stale(self, job_id: str) -> None:
        """Delete this machine's copies of checkpoints of jobs that have a model by now, or that are a week old.

        Another machine may have finished these jobs; the checkpoints that count are at the URL.
        """
        for work in self.root.glob(f"*/{CHECKPOINTS_DIR}"):
            other = work.parent.name
            if other != job_id and JOB_ID.match(other) and (_is_stale(work) or self.find(other) is not None):
                shutil.rmtree(work, ignore_errors=True)

    def upload_checkpoint(self, job_id: str, attempt: str, checkpoint: Path) -> None:
        """Upload a checkpoint, its marker last; delete earlier ones, except the best."""
        self._put(checkpoint, f"{job_id}/{CHECKPOINTS_DIR}/{attempt}/{checkpoint.name}", COMPLETE_MARKER)
        newest, best = step_of(checkpoint), best_step(checkpoint)
        with self._errors():
            for name in self._checkpoints(job_id):
                # An attempt that lost its lease may still upload: it deletes nothing of later attempts.
                if (
                    attempt_order(name) <= attempt_order(attempt)
                    and step_of(Path(name)) < newest
                    and step_of(Path(name)) != best
                ):
                    self._storage.remove_tree(f"{job_id}/{CHECKPOINTS_DIR}/{name}")

    def checkpoint_dirs(self, job_id: str) -> list[Path]:
        """Download the newest complete checkpoint and the best one; return the directories of all attempts."""
        with self._errors():
            self._download_checkpoints(job_id)
        return super().checkpoint_dirs(job_id)

    def add_model(self, job_id: str, attempt: str, directory: Path) -> None:
        """Upload a finished model, its metadata last, which makes it complete."""
        self._put(directory, f"{job_id}/{attempt}", METADATA_FILE)
        super().add_model(job_id, attempt, directory)

    def promote(self, job_id: str, attempt: str) -> None:
        """Make this attempt's model the job's model, and delete the job's checkpoints."""
        super().promote(job_id, attempt)
        with self._errors():
            self._storage.upload(self.root / job_id / METADATA_FILE, f"{job_id}/{METADATA_FILE}")
            self._storage.remove_tree(f"{job_id}/{CHECKPOINTS_DIR}")

    def delete_model(self, job_id: str, attempt: str) -> None:
        """Delete the model of an attempt that was not promoted."""
        super().delete_model(job_id, attempt)
        with self._errors():
            self._storage.remove_tree(f"{job_id}/{attempt}")

    def models(self) -> list[RegisteredModel]:
        """Return the model of each job that has one."""
        with self._errors():
            names = self._storage.folders()
        return [model for name in names if JOB_ID.match(name) and (model := self.find(name)) is not None]

    def find(self, job_id: str) -> RegisteredModel | None:
        """Return the model of a job; None if it has none."""
        with self._errors():
            for name in (METADATA_FILE, *self._metadata_files(job_id)):
                with contextlib.suppress(ValueError, AttributeError, RecursionError):  # damaged, or gone by now
                    card = json.loads(self._storage.read(f"{job_id}/{name}") or b"")
                    return RegisteredModel(job_id, str(card.get("attempt") or name.partition("/")[0]), card)
        return None

    def fetch(self, job_id: str) -> Path:
        """Download the job's model, unless it is on this machine already."""
        attempt = self._require(job_id).attempt
        target = self.root / job_id / attempt
        if not (target / METADATA_FILE).is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{attempt}.", dir=target.parent))
            try:
                with self._errors():
                    self._get(f"{job_id}/{attempt}", temporary / attempt)
                with contextlib.suppress(OSError):  # another process was first
                    (temporary / attempt).replace(target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return target

    def _metadata_files(self, job_id: str) -> list[str]:
        """Return the metadata files of all attempts, the newest first."""
        names = (name for name in self._storage.sizes(job_id) if PurePosixPath(name).parts[1:] == (METADATA_FILE,))
        return sorted(names, key=attempt_order, reverse=True)

    def _checkpoints(self, job_id: str) -> dict[str, dict[str, int]]:
        """Return the files of each checkpoint `ATTEMPT/checkpoint-STEP`, with their sizes."""
        found: dict[str, dict[str, int]] = {}
        for name, size in self._storage.sizes(f"{job_id}/{CHECKPOINTS_DIR}").items():
            parts = PurePosixPath(name).parts
            if len(parts) > 2:
                found.setdefault("/".join(parts[:2]), {})["/".join(parts[2:])] = size
        return found

    def _download_checkpoints(self, job_id: str) -> None:
        found = self._checkpoints(job_id)
        here = latest_complete(super().checkpoint_dirs(job_id))
        steps = step_of(here) if here else -1
        newest = self._newest_complete(job_id, {n: files for n, files in found.items() if step_of(Path(n)) > steps})
        if newest is not None:
            here = self._download_checkpoint(job_id, newest)
        best = best_step(here) if here else None
        if here is None or best is None or checkpoint_at_step(here, best) is not None:
            return
        name = self._newest_complete(job_id, {n: files for n, files in found.items() if step_of(Path(n)) == best})
        if name is not None:
            self._download_checkpoint(job_id, name)

    def _newest_complete(self, job_id: str, found: Mapping[str, Mapping[str, int]]) -> str | None:
        """Return the complete checkpoint with the most steps, of the latest attempt."""

        def is_complete(name: str) -> bool:
            marker = f"{job_id}/{CHECKPOINTS_DIR}/{name}/{COMPLETE_MARKER}"
            return COMPLETE_MARKER in found[name] and has_all_files(self._storage.read(marker) or b"", found[name])

        newest_first = sorted(found, key=lambda name: (step_of(Path(name)), attempt_order(name)), reverse=True)
        return next(filter(is_complete, newest_first), None)

    def _download_checkpoint(self, job_id: str, name: str) -> Path:
        target = self.root / job_id / CHECKPOINTS_DIR / name
        self._get(f"{job_id}/{CHECKPOINTS_DIR}/{name}", target)
        return target

    def _put(self, source: Path, name: str, last: str) -> None:
        files = sorted((path for path in source.rglob("*") if path.is_file()), key=lambda path: path.name == last)
        with self._errors():
            for path in files:
                self._storage.upload(path, f"{name}/{path.relative_to(source).as_posix()}")

    def _get(self, name: str, target: Path) -> None:
        for file, size in self._storage.sizes(name).items():
            local = target / file
            if not local.is_file() or local.stat().st_size != size:
                local.parent.mkdir(parents=True, exist_ok=True)
                self._storage.download(f"{name}/{file}", local)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except StorageError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and str(cause.filename or "").startswith(f"{self.root}/"):
                raise cause from None  # this machine's own disk
            kind = UsageError if isinstance(cause, PermissionError | FileNotFoundError) else StorageError
            raise kind(f"The model registry {self} cannot be used: {error.message}") from error

    def __str__(self) -> str:
        return self._url


def registry_url(settings: Settings) -> str | None:
    """Return the directory or URL of the registry: as set, or in the state directory of the embedded queue."""
    if settings.models_url:
        return settings.models_url
    return str(settings.home.expanduser().absolute() / "models") if settings.embedded else None


def open_registry(url: str | None, cache: Path) -> ModelRegistry:
    """Return the registry in a directory or at a URL; models of a remote one are downloaded to `cache`.

    Raises:
        UsageError: there is no URL, or a library that it needs is not installed.
    """
    if not url:
        raise UsageError(
            "No model registry is configured: set HUGQUEUE_MODELS_URL to a directory that all workers share, or to a "
            "URL such as s3://bucket/models."
        )
    if is_url(url):
        try:
            return RemoteModelRegistry(url, cache)
        except MissingStorageLibrary as error:
            raise UsageError(f"HUGQUEUE_MODELS_URL={error.message}") from error
    with path_errors(f"The model registry {url} cannot be used"):
        root = local_path(url).expanduser().absolute()
        root.is_dir()  # raises here if the system refuses the path, so that the message names the registry
    return ModelRegistry(root)


def _read_card(path: Path) -> dict[str, Json] | None:
    try:
        card = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return card if isinstance(card, dict) else None


def _is_stale(work: Path) -> bool:
    """Whether nothing was written there for a week."""
    newest = max((path.lstat().st_mtime for path in (work, *work.rglob("*"))), default=0.0)
    return time.time() - newest > _STALE_SECONDS
