"""Configuration of sentence-transformers models: reads `modules.json` and the files it refers to.

The files are those that sentence-transformers 2 to 6 write. What a module computes is in
`workers.inference.embedding.pooling`. A configuration that cannot be followed exactly is rejected: nothing would show
that the vectors are slightly wrong.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import msgspec

from common.errors import ModelError
from common.records import Json
from common.task_params import POOLING_MODES
from workers.models.file_references import read_json

_Count = Annotated[int, msgspec.Meta(ge=1)]
_Kwargs = dict[str, Json] | None

#: The flags of older files, one for each of `POOLING_MODES` and in their order.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


class _General(msgspec.Struct):
    prompts: dict[str, str | None] = {}
    default_prompt_name: str | None = None
    truncate_dim: _Count | None = None
    model_type: str = "SentenceTransformer"


class _Pooling(msgspec.Struct):
    pooling_mode: str | list[str] | None = None
    include_prompt: bool = True


class DenseConfig(msgspec.Struct, frozen=True):
    """A linear layer over the vector, with an activation."""

    directory: Path  #: has model.safetensors
    in_features: _Count
    out_features: _Count
    bias: bool = True
    activation_function: str = "torch.nn.modules.activation.Tanh"  #: full name of a class of `torch.nn`
    use_residual: bool = False  #: whether the input is added to the output


class _Transformer(msgspec.Struct):
    max_seq_length: _Count | None = None
    do_lower_case: bool | None = False
    transformer_task: str = "feature-extraction"
    module_output_name: str = "token_embeddings"
    modality_config: dict[str, dict[str, Json]] | None = None
    processing_kwargs: dict[str, _Kwargs] | None = None
    model_kwargs: _Kwargs = None
    model_args: _Kwargs = None  #: the older name of `model_kwargs`, and so on
    processor_kwargs: _Kwargs = None
    tokenizer_args: _Kwargs = None
    config_kwargs: _Kwargs = None
    config_args: _Kwargs = None

    @property
    def modality(self) -> str:
        """How a text is given to the model: as a chat message where it takes messages."""
        return "message" if "message" in (self.modality_config or {}) else "text"

    @property
    def way(self) -> dict[str, Json]:
        """How the model runs that modality."""
        return (self.modality_config or {}).get(self.modality) or {}

    def call(self, name: str) -> dict[str, Json]:
        """Return the arguments of a call of the tokenizer."""
        return (self.processing_kwargs or {}).get(name) or {}


_MODULE_NAMES = ("module_input_name", "module_output_name")
#: The keys of each file: those read here, and those that do not change a vector. Other keys are rejected unless their
#: value is empty. A test compares them with what the installed sentence-transformers can write.
GENERAL_KEYS = frozenset({*_General.__struct_fields__, "similarity_fn_name", "__version__"})
POOLING_KEYS = frozenset({*_Pooling.__struct_fields__, "embedding_dimension", "word_embedding_dimension", *_FLAGS})
DENSE_KEYS = frozenset({*DenseConfig.__struct_fields__[1:], *_MODULE_NAMES})
NORMALIZE_KEYS = frozenset(_MODULE_NAMES)
TRANSFORMER_KEYS = frozenset(
    # The last three are for texts that are queries or documents (`encode_query`), which are not distinguished here.
    {*_Transformer.__struct_fields__, "unpad_inputs", "query_length", "document_length", "query_expansion"}
)
#: Arguments for loading a model, its tokenizer or its configuration that do not change a vector.
_LOADING = frozenset({"revision", "token", "cache_dir", "local_files_only", "trust_remote_code", "use_cache"})
_MODEL_KWARGS = _LOADING | {"torch_dtype", "dtype", "device_map", "low_cpu_mem_usage", "use_safetensors"}
_MODEL_KWARGS |= {"attn_implementation", "add_pooling_layer"}
_PROCESSOR_KWARGS = _LOADING | {"model_max_length", "padding_side", "use_fast", "clean_up_tokenization_spaces"}
#: The same for calls of a tokenizer.
_CALL_KWARGS = frozenset({"max_length", "truncation", "padding", "pad_to_multiple_of", "return_tensors"})
_CALLS = frozenset({"text", "common", "chat_template", "image", "audio", "video"})
_TRUNCATING = (True, "longest_first", "only_first", None)


@dataclass(frozen=True, slots=True)
class ChatTemplateConfig:
    """How a text becomes a chat message."""

    structured: bool  #: whether its content is a list of parts
    template: Mapping[str, Json] = field(default_factory=dict)  #: variables of the chat template
    restore_suffix: bool = True  #: whether truncation keeps the end of the template


@dataclass(frozen=True, slots=True)
class NormalizeConfig:
    """Scales the vector to length 1."""


@dataclass(frozen=True, slots=True)
class SentenceTransformersConfig:
    """What happens to a text, from prompt to vector."""

    transformer: Path  #: directory of the model and its tokenizer
    pooling: tuple[str, ...]  #: from `POOLING_MODES`, concatenated in this order
    include_prompt: bool = True  #: whether the prompt's tokens are pooled too
    stages: tuple[DenseConfig | NormalizeConfig, ...] = ()  #: after pooling, in this order
    max_tokens: int | None = None
    message: ChatTemplateConfig | None = None  #: for a model that takes each text as a chat message
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None  #: a key of `prompts`
    truncate_dim: int | None = None


def read_sentence_transformers_config(directory: Path) -> SentenceTransformersConfig | None:
    """Return the configuration of a model, or None if it has no `modules.json`.

    Raises:
        ModelError: `unknown_module`, it has a module or a setting that is not supported; `not_a_model`, a file that
            cannot be read.
    """
    if not (directory / "modules.json").exists():
        return None
    modules = _convert(read_json(directory / "modules.json", list), list[dict[str, Json]], directory / "modules.json")
    kinds = [_module_type(module) for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise _unsupported(f"modules.json begins with {kinds[:2]}; expected Transformer, then Pooling.")
    paths = [_module_path(directory, module) for module in modules]
    transformer = _read_transformer(paths[0])
    pooling_file = _read_module(paths[1], POOLING_KEYS)
    pooling = _convert(pooling_file, _Pooling, paths[1])
    general = _read_general(directory / "config_sentence_transformers.json")
    return SentenceTransformersConfig(
        transformer=paths[0],
        pooling=_pooling_modes(pooling, pooling_file),
        include_prompt=pooling.include_prompt,
        stages=tuple(_stage(kind, path) for kind, path in zip(kinds[2:], paths[2:], strict=True)),
        max_tokens=_max_tokens(transformer, paths[0]),
        message=_chat_template(transformer),
        lower_case=bool(transformer.do_lower_case),
        prompts={name: prompt or "" for name, prompt in general.prompts.items()},
        default_prompt=general.default_prompt_name,
        truncate_dim=general.truncate_dim,
    )


def _convert(config: Json, kind: Any, path: Path) -> Any:
    try:
        return msgspec.convert(config, kind)
    except msgspec.ValidationError as error:
        raise ModelError("not_a_model", f"The configuration in {path} is invalid: {error}") from error


def _module_type(module: Mapping[str, Json]) -> str:
    """Return the class name of a module of sentence-transformers; a module with its own code has another package."""
    package, _, name = str(module.get("type")).rpartition(".")
    if package.partition(".")[0] != "sentence_transformers":
        raise _unsupported(f"modules.json names {module.get('type')!r}, which is not part of sentence-transformers.")
    return name


def _module_path(directory: Path, module: Mapping[str, Json]) -> Path:
    path = PurePosixPath(str(module.get("path", "")))
    if path.is_absolute() or ".." in path.parts:
        raise _unsupported(f"modules.json refers to a path outside the model's directory: {str(path)!r}.")
    return directory / path


def _read_transformer(directory: Path) -> _Transformer:
    """Return the configuration of the Transformer module, whose file is named after the model type."""
    found = sorted(directory.glob("sentence_*_config.json"))
    raw = read_json(found[0]) if found else {}
    _check_keys("Transformer", raw, TRANSFORMER_KEYS)
    config: _Transformer = _convert(raw, _Transformer, directory)
    config.processor_kwargs = config.tokenizer_args or config.processor_kwargs or {}
    _check_keys("Transformer: model_kwargs", config.model_args or config.model_kwargs, _MODEL_KWARGS)
    _check_keys("Transformer: processor_kwargs", config.processor_kwargs, _PROCESSOR_KWARGS)
    _check_keys("Transformer: config_kwargs", config.config_args or config.config_kwargs, _LOADING)
    _check_keys("Transformer: processing_kwargs", config.processing_kwargs, _CALLS)
    for name in ("text", "common"):
        _check_keys(f"Transformer: processing_kwargs: {name}", config.call(name), _CALL_KWARGS)
    for name in ("text", "common", "chat_template"):
        if config.call(name).get("truncation", True) not in _TRUNCATING:
            raise _unsupported(f"its Transformer does not truncate long texts ({name}: truncation).")
    _check_keys("Transformer: modality_config", config.way, frozenset({"method", "method_output_name", "format"}))
    method, state = config.way.get("method", "forward"), config.way.get("method_output_name", "last_hidden_state")
    output = (config.transformer_task, config.module_output_name, method, state)
    if output != ("feature-extraction", "token_embeddings", "forward", "last_hidden_state"):
        raise _unsupported(
            f"its Transformer does {output[0]} by {method}() and takes {state} as {output[1]}; "
            "expected token embeddings."
        )
    return config


def _max_tokens(config: _Transformer, path: Path) -> int | None:
    """Return where texts are truncated: the setting of a call comes before that of the tokenizer."""
    calls = ("chat_template", "text", "common") if config.modality == "message" else ("text", "common")
    lengths = [config.call(name).get("max_length") for name in calls]
    lengths += [(config.processor_kwargs or {}).get("model_max_length"), config.max_seq_length]
    found = next((length for length in lengths if length is not None), None)
    tokens: int | None = _convert(found, _Count | None, path)
    return tokens


def _chat_template(config: _Transformer) -> ChatTemplateConfig | None:
    if config.modality != "message":
        return None
    kind = config.way.get("format")
    if kind not in ("flat", "structured"):
        raise _unsupported(f"its messages have the format {kind!r}; expected flat or structured.")
    template = config.call("chat_template")
    variables = {name: value for name, value in template.items() if name not in {*_CALL_KWARGS, "restore_suffix"}}
    return ChatTemplateConfig(kind == "structured", variables, bool(template.get("restore_suffix", True)))


def _read_general(path: Path) -> _General:
    raw = read_json(path)
    _check_keys("config_sentence_transformers.json", raw, GENERAL_KEYS)
    config: _General = _convert(raw, _General, path)
    if config.model_type != "SentenceTransformer":
        raise _unsupported(f"it is a {config.model_type}; expected a SentenceTransformer.")
    return config


def _check_keys(location: str, config: Mapping[str, Json] | None, known: frozenset[str]) -> None:
    for name, value in (config or {}).items():
        if name not in known and value not in (None, {}, [], ""):
            raise _unsupported(f"{location} sets {name}, which is not supported.")


def _pooling_modes(pooling: _Pooling, config: Mapping[str, Json]) -> tuple[str, ...]:
    named = pooling.pooling_mode
    if named is None:
        named = [mode for flag, mode in _FLAGS.items() if config.get(flag)] or ["mean"]
    modes = (named,) if isinstance(named, str) else tuple(named)
    if not modes:
        raise _unsupported("its list of pooling modes is empty.")
    for mode in modes:
        if mode not in POOLING_MODES:
            raise _unsupported(f"its pooling mode is {mode!r}; known: {', '.join(POOLING_MODES)}.")
    return modes


def _stage(kind: str, directory: Path) -> DenseConfig | NormalizeConfig:
    known = {"Dense": DENSE_KEYS, "Normalize": NORMALIZE_KEYS}.get(kind)
    if known is None:
        raise _unsupported(f"it has a module {kind}; known: Transformer, Pooling, Dense, Normalize.")
    config = _read_module(directory, known)
    source = config.get("module_input_name") or "sentence_embedding"
    target = config.get("module_output_name") or source
    if (source, target) != ("sentence_embedding", "sentence_embedding"):
        raise _unsupported(f"its {kind} maps {source} to {target}; expected the sentence embedding.")
    if kind == "Normalize":
        return NormalizeConfig()
    dense: DenseConfig = _convert({**config, "directory": directory}, DenseConfig, directory)
    return dense


def _read_module(directory: Path, known: frozenset[str]) -> Mapping[str, Json]:
    config: Mapping[str, Json] = read_json(directory / "config.json")
    _check_keys(f"{directory.name}/config.json", config, known)
    return config


def _unsupported(what: str) -> ModelError:
    return ModelError("unknown_module", f"This sentence-transformers model cannot be run as configured: {what}")
