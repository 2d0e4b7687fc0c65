"""The model store at an address that is no directory, as s3://bucket/models, by uploads and downloads.

fsspec is imported when such a store is opened; who has a directory does not need it.
"""

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from common.errors import StorageError, UsageError
from common.jobs import JOB_ID
from common.models.checkpoints import (
    COMPLETE_MARKER,
    best_step,
    checkpoint_at_step,
    has_all_files,
    latest_complete,
    step_of,
)
from common.models.registry import CHECKPOINTS_DIR, METADATA_FILE, ModelRegistry, RegisteredModel, attempt_order

#: Seconds after which checkpoints on this machine that nobody goes on from are forgotten.
_STALE_SECONDS = 7 * 86_400.0


class RemoteModelRegistry(ModelRegistry):
    """A store at an address that fsspec knows; `root` is a directory of this machine that mirrors what is used."""

    uploads = True

    def __init__(self, url: str, cache: Path) -> None:
        super().__init__(cache)
        self._url = url.rstrip("/")
        self._files, self._base = _file_system(self._url)

    def evict_stale(self, job_id: str) -> None:
        """Forget this machine's copies of checkpoints of jobs that have a model by now, or that lie still for long.

        Another machine may have finished them; those that count lie at the address.
        """
        for work in self.root.glob(f"*/{CHECKPOINTS_DIR}"):
            other = work.parent.name
            if other != job_id and JOB_ID.match(other) and (_is_stale(work) or self.find(other) is not None):
                shutil.rmtree(work, ignore_errors=True)

    def upload_checkpoint(self, job_id: str, attempt: str, checkpoint: Path) -> None:
        """Upload a checkpoint, its list of files last; forget those before it, but for the best."""
        self._put(checkpoint, f"{job_id}/{CHECKPOINTS_DIR}/{attempt}/{checkpoint.name}", COMPLETE_MARKER)
        newest, best = step_of(checkpoint), best_step(checkpoint)
        with self._errors():
            for name in self._checkpoints(job_id):
                # An attempt that lost its turn may still upload: it takes nothing from those after it.
                if (
                    attempt_order(name) <= attempt_order(attempt)
                    and step_of(Path(name)) < newest
                    and step_of(Path(name)) != best
                ):
                    self._remove(f"{job_id}/{CHECKPOINTS_DIR}/{name}")

    def checkpoint_dirs(self, job_id: str) -> list[Path]:
        """Bring the newest whole checkpoint here, and the best one; return the directories of all attempts."""
        with self._errors():
            self._download_checkpoints(job_id)
        return super().checkpoint_dirs(job_id)

    def add_model(self, job_id: str, attempt: str, directory: Path) -> None:
        """Upload a finished model; its card goes last and makes it whole."""
        self._put(directory, f"{job_id}/{attempt}", METADATA_FILE)
        super().add_model(job_id, attempt, directory)

    def choose(self, job_id: str, attempt: str) -> None:
        """Make this attempt's model the one that counts, and forget the work that led to it."""
        super().choose(job_id, attempt)
        with self._errors():
            self._files.put_file(str(self.root / job_id / METADATA_FILE), f"{self._base}/{job_id}/{METADATA_FILE}")
            self._remove(f"{job_id}/{CHECKPOINTS_DIR}")

    def delete_model(self, job_id: str, attempt: str) -> None:
        """Forget the model of an attempt that does not count."""
        super().delete_model(job_id, attempt)
        with self._errors():
            self._remove(f"{job_id}/{attempt}")

    def models(self) -> list[RegisteredModel]:
        """Return all models that count, by job."""
        with self._errors():
            paths = self._files.ls(self._base, detail=False) if self._files.exists(self._base) else []
        names = sorted(path.rstrip("/").rpartition("/")[2] for path in paths)
        return [model for name in names if JOB_ID.match(name) and (model := self.find(name)) is not None]

    def find(self, job_id: str) -> RegisteredModel | None:
        """Return the model of a job; None if it has none."""
        with self._errors():
            for name in (METADATA_FILE, *self._cards(job_id)):
                with contextlib.suppress(FileNotFoundError, ValueError):
                    card = json.loads(self._files.cat_file(f"{self._base}/{job_id}/{name}"))
                    return RegisteredModel(job_id, str(card.get("attempt") or name.partition("/")[0]), card)
        return None

    def fetch(self, job_id: str) -> Path:
        """Bring the job's model here, unless it is here already."""
        attempt = self._require(job_id).attempt
        target = self.root / job_id / attempt
        if not (target / METADATA_FILE).is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{attempt}.", dir=target.parent))
            try:
                with self._errors():
                    self._get(f"{job_id}/{attempt}", temporary / attempt)
                with contextlib.suppress(OSError):  # somebody else was first
                    (temporary / attempt).replace(target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return target

    def _cards(self, job_id: str) -> list[str]:
        """Return the cards of all attempts, the newest first."""
        paths = self._files.glob(f"{self._base}/{job_id}/*/{METADATA_FILE}")
        return sorted((path.rpartition(f"{job_id}/")[2] for path in paths), key=attempt_order, reverse=True)

    def _checkpoints(self, job_id: str) -> dict[str, dict[str, int]]:
        """Return what lies in each checkpoint `ATTEMPT/checkpoint-STEP`: the files with their sizes."""
        found: dict[str, dict[str, int]] = {}
        for name, size in self._sizes(f"{job_id}/{CHECKPOINTS_DIR}").items():
            attempt, checkpoint, *rest = PurePosixPath(name).parts
            if rest:
                found.setdefault(f"{attempt}/{checkpoint}", {})["/".join(rest)] = size
        return found

    def _download_checkpoints(self, job_id: str) -> None:
        found = self._checkpoints(job_id)
        newest_first = sorted(found, key=lambda name: (step_of(Path(name)), attempt_order(name)), reverse=True)
        here = latest_complete(super().checkpoint_dirs(job_id))
        for name in newest_first:
            if here is not None and step_of(here) >= step_of(Path(name)):
                break
            if self._is_complete(job_id, name, found[name]):
                here = self._download_checkpoint(job_id, name)
        if here is None or (best := best_step(here)) is None or checkpoint_at_step(here, best) is not None:
            return
        for name in newest_first:
            if step_of(Path(name)) == best and self._is_complete(job_id, name, found[name]):
                self._download_checkpoint(job_id, name)
                return

    def _is_complete(self, job_id: str, name: str, found: Mapping[str, int]) -> bool:
        listed = f"{self._base}/{job_id}/{CHECKPOINTS_DIR}/{name}/{COMPLETE_MARKER}"
        return COMPLETE_MARKER in found and has_all_files(self._files.cat_file(listed), found)

    def _download_checkpoint(self, job_id: str, name: str) -> Path:
        target = self.root / job_id / CHECKPOINTS_DIR / name
        self._get(f"{job_id}/{CHECKPOINTS_DIR}/{name}", target)
        return target

    def _put(self, source: Path, name: str, last: str) -> None:
        files = sorted((path for path in source.rglob("*") if path.is_file()), key=lambda path: path.name == last)
        targets = {path: f"{self._base}/{name}/{path.relative_to(source).as_posix()}" for path in files}
        with self._errors():
            for folder in sorted({target.rpartition("/")[0] for target in targets.values()}):
                self._files.makedirs(folder, exist_ok=True)
            for path, target in targets.items():
                self._files.put_file(str(path), target)

    def _get(self, name: str, target: Path) -> None:
        for file, size in self._sizes(name).items():
            local = target / file
            if not local.is_file() or local.stat().st_size != size:
                local.parent.mkdir(parents=True, exist_ok=True)
                self._files.get_file(f"{self._base}/{name}/{file}", str(local))

    def _sizes(self, name: str) -> dict[str, int]:
        """Return the files below `name`, by their names there, with their sizes in bytes."""
        folder = self._files._strip_protocol(f"{self._base}/{name}")
        found = self._files.find(folder, detail=True)
        return {path.removeprefix(folder).lstrip("/"): entry["size"] for path, entry in found.items()}

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.rm(f"{self._base}/{name}", recursive=True)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except UsageError:
            raise
        except Exception as error:  # a boundary: the errors of the file systems have no common base
            if isinstance(error, OSError) and str(error.filename or "").startswith(f"{self.root}/"):
                raise  # this machine's own disk
            message = f"The model store {self} cannot be used: {type(error).__name__}: {error}"
            kind = UsageError if isinstance(error, PermissionError | FileNotFoundError) else StorageError
            raise kind(message) from error

    def __str__(self) -> str:
        return self._url


def _is_stale(work: Path) -> bool:
    """Whether nothing was written there for long."""
    newest = max((path.lstat().st_mtime for path in (work, *work.rglob("*"))), default=0.0)
    return time.time() - newest > _STALE_SECONDS


def _file_system(url: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it.

    It keeps no listings: what another machine puts there is to be seen at once.
    """
    try:
        import fsspec

        found: tuple[Any, str] = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise UsageError(
            f"HUGQUEUE_MODELS_URL={url}: {error}. For other places than a directory, install fsspec and what that "
            "address needs (as s3fs for s3://)."
        ) from error
    return found
