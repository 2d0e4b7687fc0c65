"""Model references: a Hub id, a directory, or `job:ID` for a model that was fine-tuned here."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.errors import UsageError, path_errors
from common.jobs import JOB_ID
from common.tasks import find_task

#: Namespace and name as `huggingface_hub` takes them: each begins and ends with a letter, a digit or `_`.
_HUB_ID = re.compile(r"(\b[\w\-.]{1,96}\b/)?\b[\w\-.]{1,96}\b", re.ASCII)
#: Names that git allows, except those that a path or a URL would interpret.
_REVISION = re.compile(r"[\w.+=,@-]+(/[\w.+=,@-]+)*", re.ASCII)
_JOB = "job:"
#: Files of which a model's directory has one: that of transformers, and that of sentence-transformers.
_CONFIGS = ("config.json", "modules.json")


@dataclass(frozen=True, slots=True)
class ModelRef:
    """What a job calls its model, parsed."""

    kind: Literal["hub", "path", "job"]
    name: str  #: a Hub id, a path, or the id of the job that trained the model
    revision: str | None = None  #: branch, tag or commit on the Hub; None for the default branch

    @classmethod
    def parse(cls, text: str, revision: str | None = None) -> "ModelRef":
        """Return what a text refers to, judged by the text alone.

        Raises:
            UsageError: it is neither a Hub id, a path nor `job:ID`, or the Hub cannot have that revision.
        """
        if text.startswith(_JOB):
            job_id = text.removeprefix(_JOB)
            if not JOB_ID.match(job_id):
                raise UsageError(f"{text!r:.200} names no job: expected job: and twelve hexadecimal digits.")
            return cls("job", job_id)
        if text in (".", "..") or text.startswith(("/", "./", "../", "~")) or text.endswith("/") or text.count("/") > 1:
            return cls("path", text)
        if not is_hub_id(text):
            raise UsageError(f"{text!r:.200} is neither a Hub id (org/name), a directory, nor job:ID.")
        return cls("hub", text, check_revision(revision))

    @property
    def path(self) -> Path:
        """The absolute path of a reference of that kind."""
        return Path(self.name).expanduser().absolute()

    def __str__(self) -> str:
        return f"{_JOB}{self.name}" if self.kind == "job" else self.name


def is_hub_id(name: str) -> bool:
    """Whether the Hub can have a model of that name."""
    return bool(_HUB_ID.fullmatch(name)) and "--" not in name and ".." not in name and not name.endswith(".git")


def check_revision(name: str | None, option: str = "--revision") -> str | None:
    """Return the revision as it is.

    Raises:
        UsageError: nothing on the Hub can have that name.
    """
    if name is not None and (not _REVISION.fullmatch(name) or ".." in name):
        raise UsageError(f"{option} {name!r:.200}: expected a branch, a tag or a commit on the Hub.")
    return name


def find_model(text: str, option: str = "--model", *, local: bool = False) -> ModelRef:
    """Return the reference that a user means, a local directory as an absolute path.

    Args:
        text: as the user wrote it. A directory with a configuration wins over a Hub id of that name.
        option: where it was given, for messages.
        local: whether the worker runs on this machine, so that a path that does not exist here is an error.

    Raises:
        UsageError: it is not a reference, or a path at which no model is, or which the system refuses.
    """
    if text.startswith(_JOB):
        return ModelRef.parse(text)
    with path_errors(f"{option} {text}"):
        path = Path(text).expanduser()
        if any((path / name).is_file() for name in _CONFIGS):
            return ModelRef("path", str(path.resolve()))
        is_directory, is_file = path.is_dir(), path.is_file()
    if is_file:
        raise UsageError(f"{option} {text} is a file; name the directory that holds config.json and the weights.")
    try:
        ref = ModelRef.parse(text)
    except UsageError as error:
        raise UsageError(f"{option} {error}") from error
    if ref.kind == "path":
        if is_directory:
            raise UsageError(f"{option} {text}: the directory has no config.json, so it holds no model.")
        if local or not text.startswith("/"):
            raise UsageError(f"{option} {text}: there is no such directory (and a Hub id looks like org/name).")
    return ref


def parse_preload(text: str) -> str:
    """Return `TASK[=MODEL]`, checked, a directory made absolute.

    Raises:
        UsageError: there is no such task, or no such model.
    """
    task, equals, model = text.partition("=")
    find_task(task)
    return f"{task}={find_model(model, '--preload', local=True)}" if equals else task


def split_preload(text: str) -> tuple[str, str | None]:
    """Return task and model of `TASK[=MODEL]`, a path made absolute.

    Raises:
        UsageError: the model is not a reference.
    """
    task, _, model = text.partition("=")
    if not model:
        return task, None
    ref = ModelRef.parse(model)
    return task, str(ref.path if ref.kind == "path" else ref)
