"""The card of a dataset of results: how they were made, and metadata by which `datasets` finds their files.

Of a card that is there, only our own section of the text and the entry of our split in `configs` change.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from common.distribution import installed_version
from common.errors import UsageError
from common.inputs.hub_configs import (
    Configuration,
    card_configurations,
    card_metadata,
    default_splits,
    split_patterns,
)
from common.jobs import Job, iso_time, short_model
from common.records import Json
from producer.hub.manifest import Manifest
from producer.outputs.hub_target import HubOutput

CARD = "README.md"
_YAML = re.compile(r"^---[ \t]*\r?\n.*?^---[ \t]*\r?$\n?", re.DOTALL | re.MULTILINE)
#: Endings of tables; repositories have files of `.txt` and `.json` for other reasons.
_TABLES = re.compile(r"\.(parquet|arrow|jsonl|csv|tsv)(\.(gz|zst|bz2|xz))?$")


def splits_there(card: str | None, files: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Return the splits that `datasets.load_dataset` finds in a repository, with their files.

    Args:
        card: the text of its card; None without one.
        files: all files of the repository.

    Raises:
        ValueError: the card is damaged.
    """
    configurations = card_configurations(card or "", files)
    if not configurations:
        return default_splits([file for file in files if _TABLES.search(file)])
    default = next((one for one in configurations if one.default), Configuration("default", {}))
    return default.splits


def make_card(card: str | None, files: Sequence[str], target: HubOutput, job: Job, manifest: Manifest) -> str:
    """Return the card of a repository with the split of a job in it.

    Args:
        card: the text of the present card; None without one.
        files: the files of the repository before this split.
        target: the split.
        job: the job.
        manifest: what of its results is in the repository.

    Raises:
        UsageError: the present card is damaged.
    """
    section = _section(target, job, manifest)
    if card is None or not card.strip():
        there = splits_there(None, [file for file in files if not target.owns(file)])
        body = f"# {target.repo.partition('/')[2]}\n\n{section}\n"
        return f"{_front_matter({'tags': ['hugqueue'], 'configs': _with_split([], there, target)})}{body}"
    try:
        metadata = card_metadata(card)
        configs = _with_split(metadata.get("configs") or [], splits_there(card, files), target)
    except ValueError as error:
        raise UsageError(f"dataset {target.repo}: {CARD}: {error}.") from error
    head, body = _split_card(card)
    if configs != metadata.get("configs"):
        head = _front_matter({**metadata, "configs": configs})
    return head + _with_section(body, target, section)


def _split_card(card: str) -> tuple[str, str]:
    match = _YAML.match(card)
    return (match[0], card[match.end() :]) if match else ("", card)


def _front_matter(metadata: Mapping[str, Any]) -> str:
    from huggingface_hub.utils import yaml_dump

    return f"---\n{yaml_dump(dict(metadata), sort_keys=False)}---\n"


def _with_split(
    configs: Sequence[Mapping[str, Any]], there: Mapping[str, Sequence[str]], target: HubOutput
) -> list[dict[str, Any]]:
    """Return a card's `configs` with our split in the default configuration.

    A card without `configs` gets one with the splits that file names show: declared ones replace those.
    """
    ours = {"split": target.split, "path": target.pattern}
    found = [dict(config) for config in configs]
    default = next((config for config in found if _is_default(config, single=len(found) == 1)), None)
    if default is None:
        default = {"config_name": "default"}
        found.append(default)
        there = {} if configs else there
    listed = _data_files(default, there)
    if ours not in listed:
        default["data_files"] = [*(item for item in listed if item["split"] != target.split), ours]
        default.pop("data_dir", None)  # the paths in `listed` begin with it
    return found


def _is_default(config: Mapping[str, Any], *, single: bool) -> bool:
    return single or config["config_name"] == "default" or bool(config.get("default"))


def _data_files(config: Mapping[str, Any], there: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Return the splits of a configuration with their patterns; `there` are its files if it declares none."""
    declared = config.get("data_files")
    if declared is None:
        return [{"split": split, "path": list(files)} for split, files in there.items()]
    folder = str(config.get("data_dir") or "").strip("/")
    if not folder and isinstance(declared, list) and all(isinstance(item, dict) for item in declared):
        return declared
    prefix = f"{folder}/" if folder else ""
    patterns = split_patterns(declared)
    return [{"split": split, "path": [prefix + one for one in ones]} for split, ones in patterns.items()]


def _with_section(body: str, target: HubOutput, section: str) -> str:
    begin, end = _markers(target)
    start, stop = body.find(begin), body.find(end)
    if 0 <= start < stop:
        return body[:start] + section + body[stop + len(end) :]
    return f"{body.rstrip()}\n\n{section}\n"


def _markers(target: HubOutput) -> tuple[str, str]:
    return f"<!-- hugqueue: {target.split} -->", f"<!-- end of hugqueue: {target.split} -->"


def _section(target: HubOutput, job: Job, manifest: Manifest) -> str:
    spec, run = job.spec, job.run_info
    commit = run.get("commit") or spec.revision
    model = _code(short_model(spec.model)) if spec.model else "none"
    done = f"{manifest.records:,} of {job.records or 0:,}"
    facts = {
        "Task": _code(spec.task),
        "Model": f"{model} at commit {_code(commit)}" if commit else model,
        "Parameters": ", ".join(_code(f"{name}={_text(value)}") for name, value in spec.shown_params.items()) or "none",
        **({"Vectors": _code(run["vectors"])} if run.get("vectors") else {}),
        "Input": ", ".join(map(_code, map(_public_name, spec.inputs))) or "Python objects",
        "Records": f"{done}, of which {manifest.failed:,} failed",
        "Job": f"{_code(job.id)}, submitted {iso_time(spec.created_at)}",
        "Made by": f"hugqueue {installed_version('hugqueue') or ''}".strip(),
    }
    begin, end = _markers(target)
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return (
        f"{begin}\n## Split {target.split}\n\nResults of a model, one row for each record. The columns `error_code` "
        f"and `error_message` say why a record has no output.\n\n| | |\n|---|---|\n{rows}\n{end}"
    )


def _text(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _code(value: object) -> str:
    """Return a value as code in a cell of a Markdown table."""
    text = " ".join(str(value).split()).replace("|", "\\|")
    fence = "``" if "`" in text else "`"
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"


def _public_name(name: str) -> str:
    """Return an input as others may see it: a dataset as it is, of a path or URL only the name of the file."""
    if name.startswith("hf:"):
        return name
    return PurePosixPath(name.partition("?")[0]).name or name
