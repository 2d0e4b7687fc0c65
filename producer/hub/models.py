"""Uploading a fine-tuned model to the Hub: its files as they are, and its card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UsageError
from common.inputs.hub_configs import card_metadata
from common.models.references import ModelRef, is_hub_id
from common.models.registry import ModelRegistry
from common.records import Json
from producer.hub.repository import Head, HubRepository, added_file

_CARD = "README.md"
#: The tag by which a card is known as one of ours, which the next push replaces.
_TAG = "hugqueue"


def push_model(registry: ModelRegistry, model: str, repo: str, *, public: bool) -> str:
    """Upload the model of a fine-tune job in one commit; return the URL of its repository.

    A repository that exists keeps its other files, and a card that hugqueue did not write.

    Args:
        registry: where the model is.
        model: `job:ID`, or the id alone.
        repo: the repository, ORG/NAME; it is created if it does not exist.
        public: create it as a public one.

    Raises:
        UsageError: the registry has no model of that job (yet), or this user cannot write to the repository.
        HugqueueError: the Hub fails for long.
    """
    job_id = ModelRef.parse(f"job:{model.removeprefix('job:')}").name
    if repo.count("/") != 1 or not is_hub_id(repo):
        raise UsageError(f"{repo!r:.200} names no repository on the Hub: expected ORG/NAME.")
    found = registry.find(job_id)
    if found is None:
        raise UsageError(
            f"job:{job_id}: the model registry {registry} has no model of that job: it is unknown, trained none, or is "
            f"not finished. `producer models` lists the models, and `producer status {job_id}` shows the job."
        )
    repository = HubRepository(repo, "model")
    exists = repository.check_writable()
    directory = registry.fetch(job_id)
    if not exists:
        repository.create(public=public)
    _upload(repository, directory, found.card, job_id)
    return repository.url


def _upload(repository: HubRepository, directory: Path, card: Mapping[str, Json], job_id: str) -> None:
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != _CARD)

    def plan(head: Head) -> list[Any]:
        # Made anew for each attempt: they note what the repository has, and only what differs is committed.
        operations = [added_file(path.relative_to(directory).as_posix(), path) for path in files]
        present = repository.read(_CARD, head)
        if present is not None and not _is_ours(present):
            return operations
        return [*operations, added_file(_CARD, _public_card((directory / _CARD).read_text("utf-8"), card))]

    repository.commit(plan, f"Add the model of job {job_id}")


def _is_ours(card: str) -> bool:
    """Whether hugqueue wrote a card, or nobody wrote anything in it."""
    try:
        metadata = card_metadata(card)
    except ValueError:
        return False
    return _TAG in (metadata.get("tags") or []) or not card.strip()


def _public_card(text: str, card: Mapping[str, Json]) -> str:
    """Return the card of a model for the Hub, where a base model that is a directory or a job of ours has no page."""
    if is_hub_id(str(card.get("base_model") or "")):
        return text
    from huggingface_hub import ModelCard

    found = ModelCard(text)
    found.data.base_model = None
    return str(found)
