"""References in a model's configuration files to other files, code and repositories, checked before a library follows.

Libraries open whatever a configuration names: a shard at `../../x`, a pickle behind an index of safetensors, a
repository of attention kernels. Each reference must stay inside the model's own directory, and code runs only on
workers started with `--allow-remote-code`.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from common.errors import ModelError
from common.records import Json

CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
PROCESSOR_CONFIGS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
#: Settings of config.json that may name a repository of kernels, `owner/name`, instead of an implementation.
_IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")


def check_references(directory: Path, *, allow_pickle: bool, allow_code: bool) -> None:
    """Check what the files of a model's directory refer to.

    Raises:
        ModelError: `model_not_allowed`, a path outside the directory; `unsafe_weights`, weights that are pickles;
            `custom_code`, a repository of kernels; `not_a_model`, a file that is not JSON.
    """
    for index in sorted(directory.glob("*.index.json")):
        _check_shards(index, allow_pickle)
    config = read_json(directory / CONFIG)
    _check_config(directory, config, allow_code)
    _check_tokenizer(directory, read_json(directory / TOKENIZER_CONFIG))
    for name in PROCESSOR_CONFIGS:
        _check_processor(directory / name)


def check_code(directory: Path, names: Sequence[str], classes: Sequence[str]) -> None:
    """Refuse a part of a model whose repository contains code for it: transformers would run its own code instead.

    Args:
        directory: the model's.
        names: the configuration files that may name the code.
        classes: the automatic classes about to be used, such as `AutoConfig` and `AutoModelForMaskedLM`.

    Raises:
        ModelError: `custom_code`.
    """
    for name in names:
        found = next(_code_of(read_json(directory / name), classes), None)
        if found is not None:
            raise ModelError(
                "custom_code",
                f"{directory} contains its own code ({name}: auto_map names {found}), and this worker runs none. "
                "Start it with --allow-remote-code if you trust that code. Or run the architecture of that name in "
                "transformers, which may be another one: submit with -p ignore_auto_map=true; to fine-tune, take "
                "auto_map out of the file.",
            )


def code_repositories(directory: Path) -> set[str]:
    """Return the other repositories whose code the model's files name."""
    files = (read_json(directory / name) for name in (CONFIG, TOKENIZER_CONFIG, *PROCESSOR_CONFIGS))
    references = (reference for file in files for reference in _code_of(file, None))
    return {repository for repository, separator, _ in (ref.partition("--") for ref in references) if separator}


def tokenizer_settings(directory: Path) -> dict[str, None]:
    """Return the settings of the tokenizer that name files, each set to None.

    A tokenizer finds its files by name in the directory; its configuration has their paths on the machine that saved
    it.
    """
    return {name: None for name in read_json(directory / TOKENIZER_CONFIG) if name.endswith("_file")}


def processor_settings(directory: Path) -> dict[str, str]:
    """Return the setting that has an image processor read the names of its classes from its directory (OneFormer)."""
    parts = [part for name in PROCESSOR_CONFIGS for part in _objects(read_json(directory / name))]
    return {"repo_path": str(directory)} if any(part.get("class_info_file") for part in parts) else {}


def read_json(path: Path, kind: type[dict[str, Json]] | type[list[Json]] = dict) -> Json:
    """Return the object in a file (or the list, by `kind`), an empty one if there is no such file.

    Raises:
        ModelError: `not_a_model`, it holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return kind()
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError("not_a_model", f"{path} cannot be read: {error}") from error
    if not isinstance(found, kind):
        expected = "a JSON object" if kind is dict else "a JSON array"
        raise ModelError("not_a_model", f"{path} must contain {expected}, found {type(found).__name__}.")
    return found


def check_inside(path: Path, reference: Json) -> None:
    """Check that a reference in a file of a model stays inside the model's directory.

    Raises:
        ModelError: `model_not_allowed`.
    """
    inside = isinstance(reference, str) and reference and "\0" not in reference
    if not inside or (parts := PurePosixPath(str(reference))).is_absolute() or ".." in parts.parts:
        raise ModelError("model_not_allowed", f"{path} refers to {reference!r}; expected the name of a file beside it.")


def _check_shards(index: Path, allow_pickle: bool) -> None:
    shards = read_json(index).get("weight_map")
    for shard in shards.values() if isinstance(shards, dict) else ():
        check_inside(index, shard)
        if not allow_pickle and index.name.endswith(".safetensors.index.json") and not shard.endswith(".safetensors"):
            raise ModelError(
                "unsafe_weights",
                f"{index} names {shard}, which is not a safetensors file: other formats can run code when opened. "
                "Save the model again with model.save_pretrained().",
            )


def _check_config(directory: Path, config: dict[str, Json], allow_code: bool) -> None:
    path = directory / CONFIG
    for part in _objects(config):
        weights, backbone = part.get("transformers_weights"), part.get("backbone")
        if weights is not None:
            check_inside(path, weights)
            if "/" in weights:
                raise ModelError("model_not_allowed", f"{path}: its weights are in {weights!r}, not beside it.")
        if isinstance(backbone, str) and "/" in backbone and not part.get("backbone_config"):
            raise ModelError("model_not_allowed", f"{path} takes its backbone from another model, {backbone}.")
        for name in part:
            if not allow_code and name.strip("_").startswith(_IMPLEMENTATIONS):
                _check_implementation(path, name, part[name])


def _check_implementation(path: Path, name: str, value: Json) -> None:
    for choice in value.values() if isinstance(value, dict) else (value,):
        if isinstance(choice, str) and "/" in choice:
            raise ModelError(
                "custom_code",
                f"{path}: {name} names the repository {choice}, whose code runs only on a worker started with "
                "--allow-remote-code. Take the setting out of the file.",
            )


def _check_tokenizer(directory: Path, config: dict[str, Json]) -> None:
    path = directory / TOKENIZER_CONFIG
    if config.get("init_inputs"):
        raise ModelError("no_tokenizer", f"{path}: init_inputs are not supported; expected settings with names.")
    versions = config.get("fast_tokenizer_files")
    for name in versions if isinstance(versions, list) else ():
        check_inside(path, name)
    for name, value in config.items():
        if name.endswith("_kwargs") and isinstance(value, dict):
            for part in value.values():
                if isinstance(part, str) and "/" in part:
                    raise ModelError("model_not_allowed", f"{path}: {name} names the path or repository {part!r}.")


def _check_processor(path: Path) -> None:
    for part in _objects(read_json(path)):
        names = part.get("class_info_file")
        if names is not None:
            check_inside(path, names)
            if not (path.parent / names).is_file():
                raise ModelError(
                    "model_not_allowed",
                    f"{path} takes {names} from {part.get('repo_path') or 'elsewhere'}; put that file beside it.",
                )


def _code_of(config: dict[str, Json], classes: Sequence[str] | None) -> Iterator[str]:
    """Yield what `auto_map` names for the classes; for all of them, with None."""
    for part in _objects(config):
        found = part.get("auto_map")
        entries = found if isinstance(found, dict) else {"AutoTokenizer": found}
        for name, value in entries.items():
            if classes is None or name in classes:
                yield from (ref for ref in (value if isinstance(value, list) else [value]) if isinstance(ref, str))


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield an object of JSON and all within it."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(part)
