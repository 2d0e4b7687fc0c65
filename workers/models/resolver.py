"""The one resolver: from what a job calls its model to a directory, from which alone libraries load.

`from_pretrained("a/b")` by itself takes a directory `a/b` of the working directory, and fetches whatever a name says;
so no name reaches a library. A hub id becomes a cached snapshot (`workers.models.hub_download`); a path must lie
where the worker
allows it. Knows no task but for its default model.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from common.errors import ModelError, UsageError, WorkerError, first_line
from common.models.references import is_hub_id, is_revision
from common.models.registry_location import job_of, open_registry, registry_url
from common.settings import Settings
from common.tasks import find_task
from workers.disk_space import PERMANENT_ERRNOS
from workers.models.load_options import DEFAULT_OPTIONS, LoadOptions
from workers.models.model_files import check_files
from workers.models.model_references import code_repositories


@dataclass(frozen=True, slots=True)
class ModelPolicy:
    """Which models the jobs of a worker may name, and what of them may be opened."""

    roots: tuple[str, ...] = ()  #: directories under which a job may name a path
    patterns: tuple[str, ...] = ()  #: of hub ids that jobs may name; empty allows all
    preloaded: tuple[str, ...] = ()  #: ids and paths that the worker itself was started with
    any_path: bool = False  #: every path is allowed: the embedded worker, which serves its own user
    models: str | None = None  #: address of the store of fine-tuned models
    load: LoadOptions = DEFAULT_OPTIONS
    cache: str = ""  #: directory for what comes from a store that is no directory

    @classmethod
    def of(cls, settings: Settings) -> "ModelPolicy":
        """Return the policy of a worker with these settings."""
        return cls(
            roots=tuple(str(root) for root in settings.model_roots),
            patterns=settings.allowed_models,
            preloaded=tuple(filter(None, (text.partition("=")[2] for text in settings.preload))),
            any_path=settings.any_path,
            models=registry_url(settings),
            load=LoadOptions.of(settings),
            cache=str(settings.model_cache),
        )

    def encode(self) -> str:
        """Return the JSON text that `decode` takes."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def decode(cls, text: str) -> "ModelPolicy":
        """Return the policy of that JSON text, which comes from this worker's own parent process."""
        return msgspec.json.decode(text, type=cls)


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model's directory and where it came from."""

    model: str  #: as the job names it, or the task's default
    path: Path
    commit: str | None  #: of the hub; None for a path
    source: str  #: `hub`, `cache`, `path` or `store`


def is_path(model: str) -> bool:
    """Whether a model's name is a path: it begins like one, or has more slashes than a hub id."""
    return model.startswith(("/", "./", "../", "~")) or model in (".", "..") or model.count("/") > 1


def resolve(
    model: str | None,
    revision: str | None,
    task: str,
    policy: ModelPolicy,
    on_stage: Callable[[str], None] = lambda _: None,
) -> ResolvedModel:
    """Return the directory of a model, downloaded if need be.

    Args:
        model: hub id or absolute path; None for the default of `task`.
        revision: branch, tag or commit on the hub; None for the default branch.
        task: a task's name.
        policy: what this worker allows.
        on_stage: told what is downloaded, how large it is, and how far it is. May raise `Cancelled`.

    Raises:
        ModelError: `no_model`, `model_not_found`, `model_not_allowed`, `model_gated`, `model_offline`,
            `model_unreadable`, `unsafe_weights`, `adapter_only`.
        WorkerError: `hub_unavailable`, after several tries; `disk_full`; `model_unreadable`, if that may pass.
    """
    if model is None:
        known = find_task(task)
        if known.model is None:
            raise ModelError("no_model", f"{task} has no default model; name one with --model.")
        model, revision = known.model, revision or known.revision
    try:
        found = _found(model, revision, policy, on_stage)
        check_files(model, [entry.name for entry in found.path.iterdir()], policy.load.allow_pickle)
        if policy.load.allow_remote_code:  # else no code is run, whoever it is by
            for repository in sorted(code_repositories(found.path)):
                _check_allowed(repository, policy)
    except OSError as error:
        message = (
            f"{model:.200} cannot be used on the worker's machine: {error.filename or model!s:.300}: "
            f"{error.strerror or first_line(error)}. The worker runs as user {os.getuid()}, which has to read the "
            "model, and to write its cache (HF_HOME, and of job:ID HUGQUEUE_HOME)."
        )
        if error.errno is None or error.errno in PERMANENT_ERRNOS:
            raise ModelError("model_unreadable", message) from error
        raise WorkerError("model_unreadable", message) from error  # too many open files, a network drive that is away
    return found


def _found(model: str, revision: str | None, policy: ModelPolicy, on_stage: Callable[[str], None]) -> ResolvedModel:
    if is_path(model):
        return ResolvedModel(model, _allowed_path(model, policy), None, "path")
    if model.startswith("job:"):
        return ResolvedModel(model, _from_registry(model, policy), None, "store")
    return _from_hub(model, revision, policy, on_stage)


def _from_hub(model: str, revision: str | None, policy: ModelPolicy, on_stage: Callable[[str], None]) -> ResolvedModel:
    """Return what the cache or the hub has under that name."""
    _check_names(model, revision)
    _check_allowed(model, policy)
    from workers.models.hub_download import fetch  # huggingface_hub takes a third of a second to import

    snapshot = fetch(model, revision, policy.load.allow_pickle, policy.load.allow_remote_code, on_stage)
    return ResolvedModel(model, snapshot.path, snapshot.commit, snapshot.source)


def _check_names(model: str, revision: str | None) -> None:
    if not is_hub_id(model):
        raise ModelError(
            "model_not_found", f"{model!r} is not a model: expected a hub id as owner/name, or an absolute path."
        )
    if revision is not None and not is_revision(revision):
        raise ModelError("model_not_found", f"{revision!r} is not a revision: expected a branch, a tag or a commit.")


def _from_registry(model: str, policy: ModelPolicy) -> Path:
    """Return the directory of a model that a job of this queue made."""
    try:
        return open_registry(policy.models, Path(policy.cache)).fetch(job_of(model) or "")
    except UsageError as error:
        raise ModelError("model_not_found", f"{model}: {error}") from error


def _check_allowed(model: str, policy: ModelPolicy) -> None:
    if not policy.patterns or model in policy.preloaded:
        return
    if not any(fnmatchcase(model, pattern) for pattern in policy.patterns):
        raise ModelError(
            "model_not_allowed",
            f"This worker does not serve {model}: HUGQUEUE_ALLOWED_MODELS allows {', '.join(policy.patterns)}.",
        )


def _allowed_path(model: str, policy: ModelPolicy) -> Path:
    """Return the real directory of a path, if a job may name it.

    A path outside is refused in the same words whether it exists or not: jobs are no way to look around.
    """
    if "\0" in model:
        raise ModelError("model_not_found", f"{model!r:.200} is not a path: it has a zero byte.")
    path = Path(model).expanduser()
    if not path.is_absolute():
        raise ModelError("model_not_found", f"{model}: a worker has no working directory of yours; name a whole path.")
    real = Path(os.path.realpath(path))  # unlike `resolve`, it raises nothing for links in a circle
    roots = [Path(root).resolve() for root in policy.roots]
    own = policy.any_path or any(real == Path(name).resolve() for name in policy.preloaded if is_path(name))
    if not own and (".." in path.parts or not any(real.is_relative_to(root) for root in roots)):
        allowed = ", ".join(policy.roots) or "none are set"
        raise ModelError(
            "model_not_allowed",
            f"This worker does not open {model}: a job may name a path under HUGQUEUE_MODEL_ROOTS ({allowed}), or one "
            "that the worker preloads (--preload TASK=PATH).",
        )
    if not real.is_dir():
        raise ModelError("model_not_found", f"There is no directory {model} on the worker's machine.")
    if not own:
        _check_links(model, real, roots)
    return real


def _check_links(model: str, real: Path, roots: Sequence[Path]) -> None:
    """Refuse files that are links out of the roots: whoever may write a model there could read anything so."""
    seen, waiting = {real}, [real]
    while waiting:
        for entry in os.scandir(waiting.pop()):
            target = Path(entry.path).resolve() if entry.is_symlink() else Path(entry.path)
            if not any(target.is_relative_to(root) for root in roots):
                raise ModelError(
                    "model_not_allowed", f"{model}: {entry.name} is a link to a place outside HUGQUEUE_MODEL_ROOTS."
                )
            if target not in seen and target.is_dir():
                seen.add(target)
                waiting.append(target)
