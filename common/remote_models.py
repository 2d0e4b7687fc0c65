"""The model store at an address that is no directory, as s3://bucket/models, by uploads and downloads.

fsspec is imported when such a store is opened; who has a directory does not need it.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import UsageError
from common.stored_models import CARD, WORK, ModelsStore, StoredModel
from common.values import JOB_ID


class RemoteStore(ModelsStore):
    """A store at an address that fsspec knows; `root` is a directory of this machine that mirrors what is used."""

    def __init__(self, address: str, cache: Path) -> None:
        super().__init__(cache)
        self._address = address.rstrip("/")
        self._files, self._base = _file_system(self._address)

    def keep_checkpoint(self, job_id: str, attempt: str, checkpoint: Path) -> None:
        """Upload a checkpoint; its list of files goes last and makes it whole."""
        self._put(checkpoint, f"{job_id}/{WORK}/{attempt}/{checkpoint.name}", "whole.json")

    def earlier_work(self, job_id: str) -> list[Path]:
        """Bring the checkpoints of all attempts here and return their directories."""
        with self._errors(), contextlib.suppress(FileNotFoundError):
            self._get(f"{job_id}/{WORK}", self.root / job_id / WORK)
        return super().earlier_work(job_id)

    def add_model(self, job_id: str, attempt: str, directory: Path) -> None:
        """Upload a finished model; its card goes last and makes it whole."""
        self._put(directory, f"{job_id}/{attempt}", CARD)
        super().add_model(job_id, attempt, directory)

    def choose(self, job_id: str, attempt: str) -> None:
        """Make this attempt's model the one that counts, and forget the work that led to it."""
        super().choose(job_id, attempt)
        with self._errors():
            self._files.put_file(str(self.root / job_id / CARD), f"{self._base}/{job_id}/{CARD}")
            with contextlib.suppress(FileNotFoundError):
                self._files.rm(f"{self._base}/{job_id}/{WORK}", recursive=True)

    def drop_model(self, job_id: str, attempt: str) -> None:
        """Forget the model of an attempt that does not count."""
        super().drop_model(job_id, attempt)
        with self._errors(), contextlib.suppress(FileNotFoundError):
            self._files.rm(f"{self._base}/{job_id}/{attempt}", recursive=True)

    def models(self) -> list[StoredModel]:
        """Return all models that count, by job."""
        with self._errors():
            paths = self._files.ls(self._base, detail=False) if self._files.exists(self._base) else []
        names = sorted(path.rstrip("/").rpartition("/")[2] for path in paths)
        return [model for name in names if JOB_ID.match(name) and (model := self.find(name)) is not None]

    def find(self, job_id: str) -> StoredModel | None:
        """Return the model of a job; None if it has none."""
        with self._errors():
            for name in (CARD, *self._cards(job_id)):
                with contextlib.suppress(FileNotFoundError, ValueError):
                    card = json.loads(self._files.cat_file(f"{self._base}/{job_id}/{name}"))
                    return StoredModel(job_id, str(card.get("attempt") or name.partition("/")[0]), card)
        return None

    def fetch(self, job_id: str) -> Path:
        """Bring the job's model here, unless it is here already."""
        attempt = self._found(job_id).attempt
        target = self.root / job_id / attempt
        if not (target / CARD).is_file():
            aside = target.with_name(f".{attempt}.{os.getpid()}")
            with self._errors():
                self._get(f"{job_id}/{attempt}", aside)
            with contextlib.suppress(OSError):  # another process was first
                aside.replace(target)
            shutil.rmtree(aside, ignore_errors=True)
        return target

    def _cards(self, job_id: str) -> list[str]:
        """Return the cards of all attempts, the newest first: an attempt's name is `ROUND-ATTEMPT-HOLDER`."""
        paths = self._files.glob(f"{self._base}/{job_id}/*/{CARD}")
        return sorted((path.rpartition(f"{job_id}/")[2] for path in paths), key=_age, reverse=True)

    def _put(self, source: Path, name: str, last: str) -> None:
        files = sorted((path for path in source.rglob("*") if path.is_file()), key=lambda path: path.name == last)
        with self._errors():
            for path in files:
                target = f"{self._base}/{name}/{path.relative_to(source).as_posix()}"
                self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
                self._files.put_file(str(path), target)

    def _get(self, name: str, target: Path) -> None:
        base = f"{self._base}/{name}"
        for path in self._files.find(base):
            local = target / path.removeprefix(self._files._strip_protocol(base)).lstrip("/")
            local.parent.mkdir(parents=True, exist_ok=True)
            if not local.is_file() or local.stat().st_size != self._files.size(path):
                self._files.get_file(path, str(local))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, UsageError):
            raise
        except Exception as error:
            raise UsageError(f"The model store {self} cannot be used: {type(error).__name__}: {error}") from error

    def __str__(self) -> str:
        return self._address


def _age(card: str) -> tuple[int, ...]:
    return tuple(int(part) for part in card.split("-")[:2] if part.isdecimal())


def _file_system(address: str) -> tuple[Any, str]:
    try:
        import fsspec

        found: tuple[Any, str] = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UsageError(
            f"HUGQUEUE_MODELS_URL={address}: {error}. For other places than a directory, install fsspec and what that "
            "address needs (as s3fs for s3://)."
        ) from error
    return found
