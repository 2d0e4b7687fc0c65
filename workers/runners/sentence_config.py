"""Reads how a sentence-transformers model makes one vector of a text: its `modules.json` and what that names.

The files are those that sentence-transformers 2 to 6 write. What a module does is in `workers.runners.pooling`; what
cannot be done exactly as written is refused, for a vector that is almost right is wrong without a sign.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from common.errors import ModelError
from common.task_params import POOLING_MODES
from common.values import Json

#: The flags of older files, one for each of `POOLING_MODES` and in their order.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True, slots=True)
class DenseConfig:
    """A linear layer over the vector, and its activation."""

    directory: Path  #: holds model.safetensors
    inputs: int
    outputs: int
    bias: bool
    activation: str  #: a class of `torch.nn`, by its full name
    residual: bool  #: whether the input is added to the output


@dataclass(frozen=True, slots=True)
class NormalizeConfig:
    """Scales the vector to length 1."""


@dataclass(frozen=True, slots=True)
class SentenceConfig:
    """What happens to a text, from prompt to vector."""

    transformer: Path  #: directory of the model and its tokenizer
    pooling: tuple[str, ...]  #: from `POOLING_MODES`, joined in this order
    include_prompt: bool = True  #: whether the prompt's tokens are pooled too
    stages: tuple[DenseConfig | NormalizeConfig, ...] = ()  #: after pooling, in this order
    max_tokens: int | None = None
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None  #: a key of `prompts`
    truncate_dim: int | None = None


def read_sentence_config(directory: Path) -> SentenceConfig | None:
    """Return the configuration that the model brings, or None if it has no `modules.json`.

    Raises:
        ModelError: `unknown_module`, a module that we do not have; `not_a_model`, a file that cannot be read.
    """
    if not (directory / "modules.json").exists():
        return None
    try:
        return _read(directory)
    except (AttributeError, TypeError) as error:
        raise ModelError("not_a_model", f"A configuration file in {directory} has another shape: {error}") from error


def _read(directory: Path) -> SentenceConfig:
    modules = _read_json(directory / "modules.json", list)
    kinds = [_kind(module) for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise _unknown(f"modules.json begins with {kinds[:2]}; expected Transformer, then Pooling.")
    places = [_inside(directory, module) for module in modules]
    pooling = _read_config(places[1])
    texts = _read_transformer(places[0])
    general = _read_json(directory / "config_sentence_transformers.json", dict)
    return SentenceConfig(
        transformer=places[0],
        pooling=_modes(pooling),
        include_prompt=pooling.get("include_prompt", True),
        stages=tuple(_stage(kind, place) for kind, place in zip(kinds[2:], places[2:], strict=True)),
        max_tokens=texts.get("max_seq_length"),
        lower_case=texts.get("do_lower_case", False),
        prompts={name: prompt or "" for name, prompt in general.get("prompts", {}).items()},
        default_prompt=general.get("default_prompt_name"),
        truncate_dim=general.get("truncate_dim"),
    )


def _kind(module: Mapping[str, Json]) -> str:
    """Return the class name of a module of theirs; a module with code of its own has another package."""
    package, _, name = str(module.get("type")).rpartition(".")
    if package.partition(".")[0] != "sentence_transformers":
        raise _unknown(f"modules.json names {module.get('type')!r}, which is not part of sentence-transformers.")
    return name


def _inside(directory: Path, module: Mapping[str, Json]) -> Path:
    path = PurePosixPath(str(module.get("path", "")))
    if path.is_absolute() or ".." in path.parts:
        raise _unknown(f"modules.json leads out of the model's directory: {str(path)!r}.")
    return directory / path


def _read_transformer(directory: Path) -> Mapping[str, Json]:
    """Return the settings of the Transformer module; the file's name has its old model type in the middle."""
    found = sorted(directory.glob("sentence_*_config.json"))
    config: Mapping[str, Json] = _read_json(found[0], dict) if found else {}
    task = config.get("transformer_task", "feature-extraction")
    output = config.get("module_output_name", "token_embeddings")
    method = config.get("modality_config", {}).get("text", {}).get("method", "forward")
    if (task, output, method) != ("feature-extraction", "token_embeddings", "forward"):
        raise _unknown(f"its Transformer does {task} by {method}() into {output}; expected plain token embeddings.")
    return config


def _modes(config: Mapping[str, Json]) -> tuple[str, ...]:
    named = config.get("pooling_mode")
    if named is None:
        modes = tuple(mode for key, mode in _FLAGS.items() if config.get(key)) or ("mean",)
    else:
        modes = (named,) if isinstance(named, str) else tuple(named)
    for mode in modes:
        if mode not in POOLING_MODES:
            raise _unknown(f"its pooling mode is {mode!r}; known: {', '.join(POOLING_MODES)}.")
    return modes


def _stage(kind: str, directory: Path) -> DenseConfig | NormalizeConfig:
    config = _read_config(directory) if kind in {"Dense", "Normalize"} else {}
    source = config.get("module_input_name") or "sentence_embedding"
    target = config.get("module_output_name") or source
    if (source, target) != ("sentence_embedding", "sentence_embedding"):
        raise _unknown(f"its {kind} goes from {source} to {target}; expected the sentence embedding.")
    if kind == "Normalize":
        return NormalizeConfig()
    if kind == "Dense":
        return _dense(config, directory)
    raise _unknown(f"it has a module {kind}; known: Transformer, Pooling, Dense, Normalize.")


def _dense(config: Mapping[str, Json], directory: Path) -> DenseConfig:
    try:
        return DenseConfig(
            directory=directory,
            inputs=int(config["in_features"]),
            outputs=int(config["out_features"]),
            bias=bool(config.get("bias", True)),
            activation=str(config.get("activation_function", "torch.nn.modules.activation.Tanh")),
            residual=bool(config.get("use_residual", False)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError("not_a_model", f"{directory}/config.json does not describe a Dense layer: {error}") from error


def _read_config(directory: Path) -> Mapping[str, Json]:
    found: Mapping[str, Json] = _read_json(directory / "config.json", dict)
    return found


def _read_json(path: Path, kind: type) -> Json:
    """Return what the file holds, or an empty `kind` if there is no such file."""
    if not path.exists():
        return kind()
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError("not_a_model", f"{path} cannot be read: {error}") from error
    if not isinstance(value, kind):
        raise ModelError("not_a_model", f"{path} must hold a JSON {kind.__name__}, found {type(value).__name__}.")
    return value


def _unknown(what: str) -> ModelError:
    return ModelError("unknown_module", f"This sentence-transformers model cannot be run as it is meant: {what}")
