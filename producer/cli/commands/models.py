"""`producer models`: lists, exports and uploads fine-tuned models."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from common.errors import UsageError, path_errors
from common.jobs import iso_time
from common.models.references import ModelRef
from common.models.registry import open_registry, registry_url
from common.records import Json
from common.settings import load_settings
from producer.cli.options import json_option
from producer.cli.terminal import notify, print_json

if TYPE_CHECKING:
    from common.models.registry import ModelRegistry


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """List, export or upload fine-tuned models.

    They are stored at HUGQUEUE_MODELS_URL, or in the state directory of the embedded queue.

    \b
      producer models
      producer models export job:0123456789ab ./my-model
      producer models push job:0123456789ab ORG/NAME
    """
    if context.invoked_subcommand:
        return
    found = _registry().models()
    if as_json:
        print_json([_with_iso_times(model.card) for model in found])
        return
    from producer.cli.tables import show_models

    show_models(found)
    if not found:
        notify("There are no models yet. `producer finetune FILE --model ID` trains one.")


@models.command()
@click.argument("model", metavar="job:ID")
@click.argument("directory", type=click.Path(path_type=Path))
def export(model: str, directory: Path) -> None:
    """Copy a model into a new DIRECTORY.

    It gets the weights, the tokenizer, the configuration and the model card.
    """
    target = directory.absolute()
    with path_errors(f"{directory} cannot be written"):
        parent_exists = target.parent.is_dir()
    if not parent_exists:
        raise UsageError(f"{directory} cannot be written: there is no directory {target.parent}.")
    _registry().export(ModelRef.parse(f"job:{model.removeprefix('job:')}").name, target)
    click.echo(directory)


@models.command()
@click.argument("model", metavar="job:ID")
@click.argument("repository", metavar="ORG/NAME")
@click.option(
    "--private/--public", default=True, show_default=True, help="How the repository is created if it does not exist."
)
def push(model: str, repository: str, private: bool) -> None:
    """Upload a model to the repository ORG/NAME on the Hub, with its model card.

    It needs a token with write access: HF_TOKEN, or that of `hf auth login`. A card there that hugqueue did not write
    is kept.
    """
    from producer.hub.models import push_model

    click.echo(push_model(_registry(), model, repository, public=not private))


def _with_iso_times(card: Mapping[str, Json]) -> dict[str, Json]:
    times = {name: value for name, value in card.items() if name.endswith("_at") and isinstance(value, int | float)}
    return {**card, **{name: iso_time(value) for name, value in times.items()}}


def _registry() -> "ModelRegistry":
    settings = load_settings()
    return open_registry(registry_url(settings), settings.model_cache)
