"""Reads how a sentence-transformers model makes one vector of a text: its `modules.json` and what that names.

The files are those that sentence-transformers 2 to 6 write. What a module does is in
`workers.inference.embedding.pooling`; what
cannot be done exactly as written is refused, for a vector that is almost right is wrong without a sign.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from common.errors import ModelError
from common.records import Json
from common.task_params import POOLING_MODES
from workers.models.model_references import read_json

#: The flags of older files, one for each of `POOLING_MODES` and in their order.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

#: The keys of each file: those that are read here, and those that do not change a vector. Any other is refused by
#: its name, unless it is empty. A test goes through what the installed version can write.
GENERAL_KEYS = frozenset(
    {"prompts", "default_prompt_name", "truncate_dim", "model_type", "similarity_fn_name", "__version__"}
)
POOLING_KEYS = frozenset({"pooling_mode", "include_prompt", "embedding_dimension", "word_embedding_dimension", *_FLAGS})
DENSE_KEYS = frozenset(
    {"in_features", "out_features", "bias", "activation_function", "use_residual", "module_input_name"}
    | {"module_output_name"}
)
NORMALIZE_KEYS = frozenset({"module_input_name", "module_output_name"})
TRANSFORMER_KEYS = frozenset(
    {"max_seq_length", "do_lower_case", "transformer_task", "module_output_name", "modality_config"}
    | {"processing_kwargs", "model_kwargs", "model_args", "processor_kwargs", "tokenizer_args", "config_kwargs"}
    | {"config_args", "unpad_inputs"}
    # These are for texts that are called queries or documents (`encode_query`), which are not told apart here.
    | {"query_length", "document_length", "query_expansion"}
)
#: What those that load a model, its tokenizer or its configuration may set without changing a vector.
_LOADING = frozenset({"revision", "token", "cache_dir", "local_files_only", "trust_remote_code", "use_cache"})
_MODEL_KWARGS = _LOADING | {"torch_dtype", "dtype", "device_map", "low_cpu_mem_usage", "use_safetensors"}
_MODEL_KWARGS |= {"attn_implementation", "add_pooling_layer"}
_PROCESSOR_KWARGS = _LOADING | {"model_max_length", "padding_side", "use_fast", "clean_up_tokenization_spaces"}
#: And what the call of a tokenizer may be told.
_CALL_KWARGS = frozenset({"max_length", "truncation", "padding", "pad_to_multiple_of", "return_tensors"})
_CALLS = frozenset({"text", "common", "chat_template", "image", "audio", "video"})
_RENAMED = {"model_args": "model_kwargs", "tokenizer_args": "processor_kwargs", "config_args": "config_kwargs"}
_TRUNCATING = (True, "longest_first", "only_first", None)


@dataclass(frozen=True, slots=True)
class ChatTemplateConfig:
    """How a text becomes a message of a chat."""

    structured: bool  #: whether its content is a list of parts
    template: Mapping[str, Json] = field(default_factory=dict)  #: variables of the chat template
    restore_suffix: bool = True  #: whether the end of the template stays when the text is cut


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
class SentenceTransformersConfig:
    """What happens to a text, from prompt to vector."""

    transformer: Path  #: directory of the model and its tokenizer
    pooling: tuple[str, ...]  #: from `POOLING_MODES`, joined in this order
    include_prompt: bool = True  #: whether the prompt's tokens are pooled too
    stages: tuple[DenseConfig | NormalizeConfig, ...] = ()  #: after pooling, in this order
    max_tokens: int | None = None
    message: ChatTemplateConfig | None = None  #: for a model that reads each text as a message of a chat
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None  #: a key of `prompts`
    truncate_dim: int | None = None


def read_sentence_transformers_config(directory: Path) -> SentenceTransformersConfig | None:
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


def _read(directory: Path) -> SentenceTransformersConfig:
    modules = read_json(directory / "modules.json", list)
    kinds = [_module_type(module) for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise _unsupported(f"modules.json begins with {kinds[:2]}; expected Transformer, then Pooling.")
    places = [_module_path(directory, module) for module in modules]
    pooling = _read_config(places[1], POOLING_KEYS)
    texts = _read_transformer(places[0])
    general = _read_model_config(directory / "config_sentence_transformers.json")
    found = SentenceTransformersConfig(
        transformer=places[0],
        pooling=_modes(pooling),
        include_prompt=pooling.get("include_prompt", True),
        stages=tuple(_stage(kind, place) for kind, place in zip(kinds[2:], places[2:], strict=True)),
        max_tokens=_max_tokens(texts),
        message=_message(texts),
        lower_case=texts.get("do_lower_case", False),
        prompts={name: prompt or "" for name, prompt in general.get("prompts", {}).items()},
        default_prompt=general.get("default_prompt_name"),
        truncate_dim=general.get("truncate_dim"),
    )
    _check_values(found)
    return found


def _check_values(config: SentenceTransformersConfig) -> None:
    for count in (config.max_tokens, config.truncate_dim):
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise TypeError(f"expected a length of at least 1, found {count!r}")
    for text in (*config.prompts.values(), config.default_prompt or ""):
        if not isinstance(text, str):
            raise TypeError(f"expected the text of a prompt, or its name, found {text!r}")


def _module_type(module: Mapping[str, Json]) -> str:
    """Return the class name of a module of theirs; a module with code of its own has another package."""
    package, _, name = str(module.get("type")).rpartition(".")
    if package.partition(".")[0] != "sentence_transformers":
        raise _unsupported(f"modules.json names {module.get('type')!r}, which is not part of sentence-transformers.")
    return name


def _module_path(directory: Path, module: Mapping[str, Json]) -> Path:
    path = PurePosixPath(str(module.get("path", "")))
    if path.is_absolute() or ".." in path.parts:
        raise _unsupported(f"modules.json leads out of the model's directory: {str(path)!r}.")
    return directory / path


def _read_transformer(directory: Path) -> Mapping[str, Json]:
    """Return the settings of the Transformer module, the older names of some of them replaced.

    The file's name has its old model type in the middle.
    """
    found = sorted(directory.glob("sentence_*_config.json"))
    config: dict[str, Json] = read_json(found[0]) if found else {}
    _check_keys("Transformer", config, TRANSFORMER_KEYS)
    for old, new in _RENAMED.items():
        config[new] = config.pop(old, None) or config.get(new) or {}
    _check_keys("Transformer: model_kwargs", config["model_kwargs"], _MODEL_KWARGS)
    _check_keys("Transformer: processor_kwargs", config["processor_kwargs"], _PROCESSOR_KWARGS)
    _check_keys("Transformer: config_kwargs", config["config_kwargs"], _LOADING)
    _check_call(config)
    task = config.get("transformer_task", "feature-extraction")
    output = config.get("module_output_name", "token_embeddings")
    way = (config.get("modality_config") or {}).get(_modality(config)) or {}
    method, state = way.get("method", "forward"), way.get("method_output_name", "last_hidden_state")
    _check_keys("Transformer: modality_config", way, frozenset({"method", "method_output_name", "format"}))
    if (task, output, method, state) != ("feature-extraction", "token_embeddings", "forward", "last_hidden_state"):
        raise _unsupported(
            f"its Transformer does {task} by {method}() and takes {state} for {output}; expected token embeddings."
        )
    return config


def _check_call(config: Mapping[str, Json]) -> None:
    """Check what a tokenizer is called with; what is for images and sounds does not concern texts."""
    call = config.get("processing_kwargs") or {}
    _check_keys("Transformer: processing_kwargs", call, _CALLS)
    for name in ("text", "common"):
        _check_keys(f"Transformer: processing_kwargs: {name}", call.get(name) or {}, _CALL_KWARGS)
    for name in ("text", "common", "chat_template"):
        if (call.get(name) or {}).get("truncation", True) not in _TRUNCATING:
            raise _unsupported(f"its Transformer does not cut texts that are too long ({name}: truncation).")


def _max_tokens(config: Mapping[str, Json]) -> int | None:
    """Return where texts are cut: as said for each call, else as said when the tokenizer was loaded."""
    call = config.get("processing_kwargs") or {}
    parts = ("chat_template", "text", "common") if _modality(config) == "message" else ("text", "common")
    lengths = [(call.get(name) or {}).get("max_length") for name in parts]
    lengths += [config["processor_kwargs"].get("model_max_length"), config.get("max_seq_length")]
    found: int | None = next((length for length in lengths if length is not None), None)
    return found


def _modality(config: Mapping[str, Json]) -> str:
    """Return what a text is given as: where the model takes messages, each text becomes one."""
    return "message" if "message" in (config.get("modality_config") or {}) else "text"


def _message(config: Mapping[str, Json]) -> ChatTemplateConfig | None:
    if _modality(config) != "message":
        return None
    way = config["modality_config"]["message"]
    if way.get("format") not in ("flat", "structured"):
        raise _unsupported(f"its messages are of the format {way.get('format')!r}; expected flat or structured.")
    template = dict((config.get("processing_kwargs") or {}).get("chat_template") or {})
    restores = template.pop("restore_suffix", True)
    variables = {name: value for name, value in template.items() if name not in _CALL_KWARGS}
    return ChatTemplateConfig(way["format"] == "structured", variables, bool(restores))


def _read_model_config(path: Path) -> Mapping[str, Json]:
    general: Mapping[str, Json] = read_json(path)
    _check_keys("config_sentence_transformers.json", general, GENERAL_KEYS)
    kind = general.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise _unsupported(f"it is a {kind}; expected a SentenceTransformer.")
    return general


def _check_keys(place: str, config: Mapping[str, Json], known: frozenset[str]) -> None:
    for name, value in config.items():
        if name not in known and value not in (None, {}, [], ""):
            raise _unsupported(f"{place} sets {name}, which is not supported.")


def _modes(config: Mapping[str, Json]) -> tuple[str, ...]:
    named = config.get("pooling_mode")
    if named is None:
        modes = tuple(mode for key, mode in _FLAGS.items() if config.get(key)) or ("mean",)
    else:
        modes = (named,) if isinstance(named, str) else tuple(named)
    if not modes:
        raise _unsupported("its list of pooling modes is empty.")
    for mode in modes:
        if mode not in POOLING_MODES:
            raise _unsupported(f"its pooling mode is {mode!r}; known: {', '.join(POOLING_MODES)}.")
    return modes


def _stage(kind: str, directory: Path) -> DenseConfig | NormalizeConfig:
    known = {"Dense": DENSE_KEYS, "Normalize": NORMALIZE_KEYS}.get(kind)
    config = _read_config(directory, known) if known else {}
    source = config.get("module_input_name") or "sentence_embedding"
    target = config.get("module_output_name") or source
    if (source, target) != ("sentence_embedding", "sentence_embedding"):
        raise _unsupported(f"its {kind} goes from {source} to {target}; expected the sentence embedding.")
    if kind == "Normalize":
        return NormalizeConfig()
    if kind == "Dense":
        return _dense(config, directory)
    raise _unsupported(f"it has a module {kind}; known: Transformer, Pooling, Dense, Normalize.")


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


def _read_config(directory: Path, known: frozenset[str]) -> Mapping[str, Json]:
    found: Mapping[str, Json] = read_json(directory / "config.json")
    _check_keys(f"{directory.name}/config.json", found, known)
    return found


def _unsupported(what: str) -> ModelError:
    return ModelError("unknown_module", f"This sentence-transformers model cannot be run as configured: {what}")
