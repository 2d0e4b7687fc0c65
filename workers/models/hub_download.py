"""Hub downloads: snapshots of models, from the cache or from the Hugging Face Hub, with progress and retries.

Every error of the Hub and the network becomes one sentence. Only the resolver calls this, after its checks.
"""

import io
import json
import logging
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_cached_repo_tree, is_offline_mode, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import filter_repo_objects
from tqdm.std import tqdm  # type: ignore[import-untyped]

from common.display_text import human_size
from common.errors import Cancelled, HugqueueError, ModelError, WorkerError, first_line
from common.reporting import Reporter
from workers.disk_space import DISK_FULL_ERRNOS
from workers.models.adapters import is_adapter
from workers.models.model_files import check_files

logger = logging.getLogger(__name__)

#: What a text model is made of: weights, configurations, vocabularies, chat templates.
_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.vocab", "*.spm", "*.bpe", "*.tiktoken"]
#: Files that tokenizers name (`vocab_files_names`) and that have other endings; a test looks for more.
_FILES += ["bpe.codes", "prophetnet.tokenizer"]
#: What the models of Stanford's ColBERT say of queries and documents, in JSON.
_FILES += ["artifact.metadata"]
#: Copies of the weights for other programs.
_IGNORED = ["onnx/*", "openvino/*", "coreml/*", "flax/*", "original/*", "*.onnx*", "checkpoint-*/*", "consolidated*"]
_PICKLES = ["*.bin", "*.pt", "*.pth"]
_MAX_ATTEMPTS = 4
#: HTTP statuses worth another attempt.
_TRANSIENT_STATUSES = (408, 425, 429, 500, 502, 503, 504)
#: Names of the errors of a machine without network: the HTTP library changes with the version of huggingface_hub.
_NO_NETWORK = ("ConnectError", "ProxyError", "ConnectionError", "gaierror")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A directory with the files of one commit."""

    path: Path
    commit: str
    source: str  #: `hub` if something was downloaded now, else `cache`


def fetch_snapshot(
    repo: str, revision: str | None, allow_pickle: bool, allow_code: bool, reporter: Reporter
) -> Snapshot:
    """Return the snapshot of a repository, from the cache if it is complete there.

    Raises:
        ModelError: `model_not_found`, `model_gated`, `model_offline`, `unsafe_weights`.
        WorkerError: `hub_unavailable`, after several attempts; `disk_full`.
        OSError: the cache cannot be read or written.
    """
    patterns = _FILES + _PICKLES * allow_pickle + ["*.py"] * allow_code
    cached = _cached(repo, revision, patterns)
    if cached is not None and (is_offline_mode() or _is_complete(repo, cached)):
        return Snapshot(cached, cached.name, "cache")
    if is_offline_mode():
        raise _offline_error(repo, revision, "this worker is offline (HF_HUB_OFFLINE is set)")
    try:
        return _with_retries(
            repo, revision, reporter, lambda: _download(repo, revision, patterns, allow_pickle, reporter)
        )
    except HugqueueError as error:
        if cached is None or not _is_unreachable(error):
            raise
        logger.warning("%s; using the cached snapshot", error)
        return Snapshot(cached, cached.name, "cache")


def _cached(repo: str, revision: str | None, patterns: list[str]) -> Path | None:
    revision = _expand_hash(repo, revision)
    try:
        found = snapshot_download(
            repo, revision=revision, local_files_only=True, allow_patterns=patterns, ignore_patterns=_IGNORED
        )
    except LocalEntryNotFoundError:
        return None
    return Path(found)


def _expand_hash(repo: str, revision: str | None) -> str | None:
    """Return the full hash of an abbreviated one if the cache has that commit, else `revision` as it is.

    The library finds an abbreviated hash only in a cache that was filled under that abbreviation.
    """
    if revision is None or not re.fullmatch(r"[0-9a-f]{7,39}", revision):
        return revision
    commits = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo, repo_type="model"), "snapshots")
    found = [path.name for path in commits.glob(f"{revision}*")]
    return found[0] if len(found) == 1 else revision


def _is_complete(repo: str, cached: Path) -> bool:
    """Whether the cache lists the files of the commit: another program may have downloaded only some of them."""
    try:
        get_cached_repo_tree(repo, revision=cached.name)
    except CachedRepoTreeNotFoundError:
        return False
    return True


def _download(repo: str, revision: str | None, patterns: list[str], allow_pickle: bool, reporter: Reporter) -> Snapshot:
    info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    siblings = info.siblings or []
    names = [file.rfilename for file in siblings]
    if not is_adapter(names):  # whose configuration is checked once it is here
        check_files(repo, names, allow_pickle)
    chosen = list(
        filter_repo_objects(
            siblings, allow_patterns=patterns, ignore_patterns=_IGNORED, key=lambda file: file.rfilename
        )
    )
    size = sum(file.size or 0 for file in chosen)
    reporter.stage(f"downloading {repo} ({human_size(size)})")
    begun = time.monotonic()
    path = Path(
        snapshot_download(
            repo,
            revision=revision,
            allow_patterns=patterns,
            ignore_patterns=_IGNORED,
            tqdm_class=_progress_bar(repo, size, reporter),
        )
    )
    logger.info("downloaded %s (%s) in %.1f s", repo, human_size(size), time.monotonic() - begun)
    return Snapshot(path, path.name, "hub")


def _progress_bar(repo: str, size: int, reporter: Reporter) -> type[Any]:
    """Return a progress bar class that displays nothing and reports each percent of the download.

    `snapshot_download` makes several bars; those that count bytes report, the furthest one first.
    """
    said = 0

    class Bar(tqdm):  # type: ignore[misc]
        monitor_interval = 0  # no monitor thread

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "file": io.StringIO(), "mininterval": float("inf")})

        def update(self, n: float | None = 1) -> Any:
            nonlocal said
            shown = super().update(n)
            percent = min(100, int(100 * self.n / size)) if self.unit == "B" and size else 0
            if percent > said:
                said = percent
                reporter.stage(f"downloading {repo} ({human_size(size)}): {percent} %")
            return shown

    return Bar


def _with_retries(repo: str, revision: str | None, reporter: Reporter, attempt: Callable[[], Snapshot]) -> Snapshot:
    """Return the result of `attempt`, retried with growing pauses while another attempt may help.

    huggingface_hub retries requests for metadata, but neither `model_info` nor a file's download after a 5xx.
    """
    for number in range(1, _MAX_ATTEMPTS + 1):
        try:
            return attempt()
        except (HugqueueError, Cancelled):
            raise
        except Exception as error:  # a boundary: the HTTP library changes with the version of huggingface_hub
            if isinstance(error, OSError) and error.filename is not None and error.errno not in DISK_FULL_ERRNOS:
                raise  # a file of the cache: retrying does not help; network errors have no file name
            found = _translate_error(repo, revision, error)
            logger.info("%s: attempt %d of %d: %s: %s", repo, number, _MAX_ATTEMPTS, type(error).__name__, error)
            if number == _MAX_ATTEMPTS or not _is_unreachable(found):
                raise found from error
        reporter.stage(f"the Hub cannot be reached for {repo}; trying again ({number + 1} of {_MAX_ATTEMPTS})")
        time.sleep(2 ** (number - 2) * random.uniform(0.75, 1.25))  # noqa: S311  (jitter, no secret)
    raise AssertionError("unreachable: the last attempt returns or raises")


def _is_unreachable(error: HugqueueError) -> bool:
    return getattr(error, "code", None) in ("hub_unavailable", "model_offline")


def _translate_error(repo: str, revision: str | None, error: Exception) -> HugqueueError:
    """Return the error as one sentence, of the class that decides what happens to the job."""
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the error that kept the library from the Hub, before it tried the cache
    if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
        return WorkerError("disk_full", f"No room for {repo} in {constants.HF_HUB_CACHE}: {error.strerror}.")
    if isinstance(error, OfflineModeIsEnabled) or type(error).__name__ in _NO_NETWORK:
        return _offline_error(repo, revision, f"{constants.ENDPOINT} cannot be reached ({first_line(error)})")
    if isinstance(error, HfHubHTTPError) and error.response.status_code not in _TRANSIENT_STATUSES:
        return _from_response(repo, revision, error)
    message = f"{repo} could not be downloaded from {constants.ENDPOINT}: {first_line(error)}"
    # The library always refuses an invalid name. A truncated answer, or a proxy's, is invalid JSON.
    refused = isinstance(error, ValueError | TypeError) and not isinstance(error, json.JSONDecodeError | OSError)
    return ModelError("model_not_found", message) if refused else WorkerError("hub_unavailable", message)


def _from_response(repo: str, revision: str | None, error: HfHubHTTPError) -> ModelError:
    """Return the error of an answer of the Hub that will not change."""
    hub = constants.ENDPOINT
    if isinstance(error, GatedRepoError):
        return ModelError(
            "model_gated",
            f"{repo} is gated: accept its terms on {hub}, then give the worker your token (HF_TOKEN).",
        )
    if isinstance(error, RevisionNotFoundError):
        return ModelError("model_not_found", f"{repo} has no revision {revision!r} on {hub}.")
    if isinstance(error, RepositoryNotFoundError):
        return ModelError(
            "model_not_found",
            f"There is no model {repo} on {hub}, or it is private: check the spelling; for a private one, give the "
            "worker a token that may read it (HF_TOKEN).",
        )
    return ModelError("model_not_found", f"{hub} refuses {repo}: {first_line(error)}")


def _offline_error(repo: str, revision: str | None, why: str) -> ModelError:
    name = f"{repo} (revision {revision})" if revision else repo
    download = f"hf download {repo}" + (f" --revision {revision}" if revision else "")
    return ModelError(
        "model_offline",
        f"The model {name} is not available: {why}, and it is not in the cache {constants.HF_HUB_CACHE}. Fetch it "
        f"once with network ({download}), copy that cache here, or name a directory that holds the model.",
    )
