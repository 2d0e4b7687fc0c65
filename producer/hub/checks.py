"""Checks of a dataset on the Hub before results are written to it: whether this user may, and what is there already."""

from collections.abc import Sequence

from common.errors import UsageError
from common.settings import Settings
from producer.hub.dataset_card import CARD, splits_there
from producer.hub.manifest import Manifest, decode, manifest_path
from producer.hub.repository import Head, HubRepository
from producer.outputs.hub_target import HubOutput


def open_repository(target: HubOutput, settings: Settings) -> HubRepository:
    """Return the repository of a target; nothing is asked of it yet."""
    return HubRepository(target.repo, "dataset", settings.hub_commit_seconds)


def check_hub_output(target: HubOutput, settings: Settings, *, begun: bool = False) -> None:
    """Check that the results of a new job can be written to a target, without changing anything.

    Args:
        target: a split of a dataset.
        settings: of the environment.
        begun: whether what is there may be the job's own; `prepare_hub_output` finds out.

    Raises:
        UsageError: the repository cannot be written (`HubRepository.check_writable`), its card is damaged, or it holds
            the split already.
    """
    repository = open_repository(target, settings)
    if repository.check_writable() and not begun:
        read_manifest(repository, repository.head(), target, None)


def prepare_hub_output(target: HubOutput, settings: Settings, job_id: str | None) -> None:
    """Create the repository of a target that `check_hub_output` accepted, if it does not exist.

    Args:
        target: a split of a dataset.
        settings: of the environment.
        job_id: the job, if it exists already: what is there may be its own.

    Raises:
        UsageError: the repository cannot be created, or holds the split of another job.
    """
    repository = open_repository(target, settings)
    if repository.exists():
        read_manifest(repository, repository.head(), target, job_id)
    else:
        repository.create(public=target.public)


def read_manifest(repository: HubRepository, head: Head, target: HubOutput, job_id: str | None) -> Manifest:
    """Return what is there of a job's results.

    Raises:
        UsageError: the split holds something else.
    """
    path = manifest_path(target.split)
    text = repository.read(path, head)
    found = decode(text, f"dataset {target.repo}: {path}") if text is not None else None
    if found is not None and found.job == job_id and all(target.owns(shard.file) for shard in found.shards):
        return found
    there = _split_there(repository, head, target)
    if found is None and not there:
        return Manifest(job_id or "", target.split)
    what = f"results of job {found.job}" if found is not None else "files of something else"
    shown = ", ".join(sorted(there)[:3]) + (f" and {len(there) - 3:,} more" if len(there) > 3 else "")
    raise UsageError(
        f"{target}: dataset {target.repo} has a split {target.split!r} already, {what} ({shown or path}). Name another "
        f"split, such as -o hf:{target.repo}:{target.split}_2, or delete that one on the Hub."
        + (f" If its upload was interrupted, `producer results {found.job} -o {target}` continues it." if found else "")
    )


def _split_there(repository: HubRepository, head: Head, target: HubOutput) -> Sequence[str]:
    """Return the files of the repository that belong to the split."""
    named = [file for file in head.files if target.owns(file)]
    try:
        return named or splits_there(repository.read(CARD, head), sorted(head.files)).get(target.split, ())
    except ValueError as error:
        raise UsageError(f"dataset {target.repo}: {CARD}: {error}. Correct it on the Hub first.") from error
