"""What users call a model, made into what any process understands: its working directory may be another."""

import re
from pathlib import Path

from common.errors import UsageError, path_errors
from common.models.registry_location import job_of
from common.tasks import find_task

#: Namespace and name, as `huggingface_hub` takes them: each begins and ends with a letter, a digit or `_`.
_HUB_ID = re.compile(r"(\b[\w\-.]{1,96}\b/)?\b[\w\-.]{1,96}\b", re.ASCII)
#: Of what git allows, all but what could be read as something else in a path or in an address.
_REVISION = re.compile(r"[\w.+=,@-]+(/[\w.+=,@-]+)*", re.ASCII)


def is_hub_id(name: str) -> bool:
    """Whether the hub can have a model of that name."""
    return bool(_HUB_ID.fullmatch(name)) and "--" not in name and ".." not in name and not name.endswith(".git")


def is_revision(name: str) -> bool:
    """Whether a branch, a tag or a commit can have that name."""
    return bool(_REVISION.fullmatch(name)) and ".." not in name


def check_revision(name: str | None, option: str = "--revision") -> str | None:
    """Return the revision as it is.

    Raises:
        UsageError: nothing on the hub can be called so.
    """
    if name is not None and not is_revision(name):
        raise UsageError(f"{option} {name!r:.200}: expected a branch, a tag or a commit of the hub.")
    return name


def resolve_model(model: str | None, option: str = "--model", *, local: bool = False) -> str | None:
    """Return a hub id as it is, and a local directory as an absolute path, which a worker can tell from an id.

    Args:
        model: as the user named it.
        option: where, for the message.
        local: whether the worker runs on this machine, so that a path that is not here is wrong.

    Raises:
        UsageError: it is a path, and no model is there or the system refuses it; or it begins with `job:`, and no id
            follows.
    """
    if model is None or job_of(model):
        return model
    with path_errors(f"{option} {model}"):
        return _resolve(model, option, local=local)


def _resolve(model: str, option: str, *, local: bool) -> str:
    path = Path(model).expanduser()
    looks_like_path = model.startswith(("/", "./", "../", "~")) or model.endswith("/") or model.count("/") > 1
    if path.is_dir() and (looks_like_path or (path / "config.json").is_file()):
        if not (path / "config.json").is_file():
            raise UsageError(f"{option} {model}: the directory holds no model: there is no config.json in it.")
        return str(path.resolve())
    if path.is_file():
        raise UsageError(f"{option} {model} is a file; name the directory that holds config.json and the weights.")
    if looks_like_path and (local or not model.startswith("/")):
        raise UsageError(f"{option} {model}: there is no such directory (and a hub id looks like org/name).")
    if not (model.startswith("/") or is_hub_id(model)):
        raise UsageError(f"{option} {model!r:.200} is neither a hub id (org/name) nor a directory.")
    return model


def parse_preload(text: str) -> str:
    """Return `TASK[=MODEL]`, checked, a directory made absolute.

    Raises:
        UsageError: there is no such task, or no such model.
    """
    task, equals, model = text.partition("=")
    find_task(task)
    return f"{task}={resolve_model(model, '--preload', local=True)}" if equals else task
