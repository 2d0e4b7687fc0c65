"""Model resolution: from what a job calls its model to the directory that libraries load it from.

`from_pretrained("a/b")` by itself takes a directory `a/b` of the working directory, and fetches any name;
so no name reaches a library. A Hub id becomes a cached snapshot (`workers.models.hub_download`); a path must be one
that the worker allows.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from common.errors import ModelError, UsageError, WorkerError, first_line
from common.models.references import ModelRef, split_preload
from common.models.registry import open_registry, registry_url
from common.reporting import Reporter
from common.settings import Settings
from common.tasks import find_task
from workers.disk_space import PERMANENT_ERRNOS
from workers.models.adapters import is_adapter, read_base
from workers.models.file_references import code_repositories
from workers.models.load_options import DEFAULT_OPTIONS, LoadOptions
from workers.models.model_files import check_downloaded, check_files


@dataclass(frozen=True, slots=True)
class ModelPolicy:
    """The models that a worker's jobs may name, and which of their files may be opened."""

    roots: tuple[str, ...] = ()  #: directories under which a job may name a path
    patterns: tuple[str, ...] = ()  #: of Hub ids that jobs may name; empty allows all
    preloaded: tuple[str, ...] = ()  #: ids and paths that the worker itself was started with
    any_path: bool = False  #: every path is allowed: the embedded worker, which serves its own user
    models: str | None = None  #: location of the model registry
    load: LoadOptions = DEFAULT_OPTIONS
    cache: str = ""  #: directory for models downloaded from a remote registry

    @classmethod
    def of(cls, settings: Settings) -> "ModelPolicy":
        """Return the policy of a worker with these settings."""
        return cls(
            roots=tuple(str(root) for root in settings.model_roots),
            patterns=settings.allowed_models,
            preloaded=tuple(model for _, model in map(split_preload, settings.preload) if model),
            any_path=settings.any_path,
            models=registry_url(settings),
            load=LoadOptions.of(settings),
            cache=str(settings.model_cache),
        )

    def encode(self) -> str:
        """Return the policy as JSON, in ASCII: a path may have no UTF-8 form."""
        return json.dumps(msgspec.to_builtins(self))

    @classmethod
    def decode(cls, text: str) -> "ModelPolicy":
        """Return the policy in the text of `encode`."""
        return msgspec.convert(json.loads(text), cls)


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model's directory and where it came from."""

    model: str  #: as the job names it, or the task's default
    path: Path
    commit: str | None  #: on the Hub; None for a path
    source: str  #: `hub`, `cache`, `path` or `registry`
    adapter: Path | None = None  #: directory of the adapter that the job names; `path` is then its base's
    base: str | None = None  #: what an adapter calls its base


def resolve(
    model: str | None,
    revision: str | None,
    task: str,
    policy: ModelPolicy,
    reporter: Reporter | None = None,
) -> ResolvedModel:
    """Return the directory of a model, downloaded if necessary; of an adapter, also that of its base.

    Args:
        model: a Hub id, an absolute path or `job:ID`; None for the default of `task`.
        revision: branch, tag or commit on the Hub; None for the default branch.
        task: a task's name.
        policy: what this worker allows.
        reporter: receives the name, size and progress of downloads.

    Raises:
        ModelError: `no_model`, `model_not_found`, `model_not_allowed`, `model_gated`, `model_offline`,
            `model_unreadable`, `unsafe_weights`, `adapter_only`, `adapter_unsupported`.
        WorkerError: `hub_unavailable`, after several attempts; `disk_full`; `model_unreadable`, if that may pass.
    """
    ref = _parse(model, revision, task)
    try:
        found = _locate(ref, policy, reporter or Reporter())
        names = [entry.name for entry in found.path.iterdir()]
        if is_adapter(names):
            found = _with_base(ref, found, names, policy, reporter or Reporter())
        else:
            check_files(str(ref), names, policy.load.allow_pickle)
        if policy.load.allow_remote_code:  # otherwise no code runs at all
            for repository in sorted(code_repositories(found.path)):
                _check_allowed(repository, policy)
    except OSError as error:
        raise _unreadable(ref, error) from error
    return found


def _parse(model: str | None, revision: str | None, task: str) -> ModelRef:
    if model is None:
        known = find_task(task)
        if known.model is None:
            raise ModelError("no_model", f"{task} has no default model; name one with --model.")
        model, revision = known.model, revision or known.revision
    try:
        return ModelRef.parse(model, revision)
    except UsageError as error:
        raise ModelError("model_not_found", str(error)) from error


def _with_base(
    ref: ModelRef, adapter: ResolvedModel, names: Sequence[str], policy: ModelPolicy, reporter: Reporter
) -> ResolvedModel:
    """Return an adapter with its base, which is resolved and checked like a model that a job names itself."""
    base = read_base(str(ref), adapter.path, names, policy.load.allow_pickle)
    check_downloaded(adapter.path)
    try:
        found = _locate(ModelRef.parse(base.model, base.revision), policy, reporter)
        check_files(base.model, [entry.name for entry in found.path.iterdir()], policy.load.allow_pickle)
    except UsageError as error:
        raise ModelError("model_not_found", f"{ref} is an adapter of {base.model!r:.200}: {error}") from error
    except (ModelError, WorkerError) as error:
        raise type(error)(error.code, f"{ref} is an adapter of {base.model}: {error.message}") from error
    return replace(adapter, path=found.path, adapter=adapter.path, base=found.model)


def _unreadable(ref: ModelRef, error: OSError) -> ModelError | WorkerError:
    """Return the error of a model that the system does not let the worker read: final, or one that may pass."""
    message = (
        f"{ref!s:.200} cannot be read on the worker's machine: {error.filename or ref!s:.300}: "
        f"{error.strerror or first_line(error)}. The worker runs as user {os.getuid()}, which must be able to read "
        "the model and to write its cache (HF_HOME, and HUGQUEUE_HOME for job:ID)."
    )
    # What may pass: too many open files, a network drive that is away.
    stays = error.errno is None or error.errno in PERMANENT_ERRNOS
    return ModelError("model_unreadable", message) if stays else WorkerError("model_unreadable", message)


def _locate(ref: ModelRef, policy: ModelPolicy, reporter: Reporter) -> ResolvedModel:
    if ref.kind == "path":
        return ResolvedModel(ref.name, _allowed_path(ref.name, policy), None, "path")
    if ref.kind == "job":
        try:
            path = open_registry(policy.models, Path(policy.cache)).fetch(ref.name)
        except UsageError as error:
            raise ModelError("model_not_found", f"{ref}: {error}") from error
        return ResolvedModel(str(ref), path, None, "registry")
    _check_allowed(ref.name, policy)
    from workers.models.hub_download import fetch_snapshot  # importing huggingface_hub takes a third of a second

    snapshot = fetch_snapshot(ref.name, ref.revision, policy.load.allow_pickle, policy.load.allow_remote_code, reporter)
    return ResolvedModel(ref.name, snapshot.path, snapshot.commit, snapshot.source)


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

    The error for a path outside does not depend on whether it exists: a job cannot explore the disk.
    """
    path = Path(os.path.expanduser(model))  # noqa: PTH111 - unlike Path's, it does not raise for an unknown user
    if "\0" in model or not path.is_absolute():
        raise ModelError(
            "model_not_found", f"{model!r:.200} is not an absolute path; paths are resolved on the worker."
        )
    real = Path(os.path.realpath(path))  # unlike `resolve`, it does not raise for a loop of links
    roots = [Path(root).resolve() for root in policy.roots]
    trusted = policy.any_path or str(real) in map(os.path.realpath, filter(os.path.isabs, policy.preloaded))
    if not trusted and (".." in path.parts or not any(map(real.is_relative_to, roots))):
        allowed = ", ".join(policy.roots) or "none are set"
        raise ModelError(
            "model_not_allowed",
            f"This worker does not open {model}: a job may name a path under HUGQUEUE_MODEL_ROOTS ({allowed}), or one "
            "that the worker preloads (--preload TASK=PATH).",
        )
    if not real.is_dir():
        raise ModelError("model_not_found", f"There is no directory {model} on the worker's machine.")
    if not trusted:
        _check_links(model, real, roots)
    return real


def _check_links(model: str, real: Path, roots: Sequence[Path]) -> None:
    """Refuse links that lead out of the roots: whoever may write a model there could read any file through one."""
    seen, waiting = {real}, [real]
    while waiting:
        for entry in os.scandir(waiting.pop()):
            target = Path(entry.path).resolve() if entry.is_symlink() else Path(entry.path)
            if not any(target.is_relative_to(root) for root in roots):
                raise ModelError("model_not_allowed", f"{model}: {entry.name} is a link out of HUGQUEUE_MODEL_ROOTS.")
            if target not in seen and target.is_dir():
                seen.add(target)
                waiting.append(target)
