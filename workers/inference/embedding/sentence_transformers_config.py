"""Configuration of sentence-transformers models: reads `modules.json` and the files it refers to.

The files are those that sentence-transformers 2 to 6 write. What a module computes is in
`workers.inference.embedding.pooling`. A configuration that cannot be followed exactly is rejected: nothing would show
that the vectors are slightly wrong.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NamedTuple

import msgspec

from common.errors import ModelError
from common.records import Json
from common.task_params import POOLING_MODES
from workers.inference.embedding.prompts import Prompts
from workers.models.file_references import read_json

#: The file with the prompts and the kind of the model.
GENERAL = "config_sentence_transformers.json"
#: The task for each kind of model.
KIND_TASKS = {
    "SentenceTransformer": "embedding",
    "CrossEncoder": "rerank",
    "SparseEncoder": "sparse-embedding",
    "MultiVectorEncoder": "multi-vector-embedding",
    "ColBERT": "multi-vector-embedding",
}
_CANNOT_RUN = "This sentence-transformers model cannot be run as configured"
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


class GeneralConfig(msgspec.Struct):
    """What config_sentence_transformers.json says."""

    prompts: dict[str, str | None] = {}
    default_prompt_name: str | None = None
    truncate_dim: _Count | None = None
    model_type: str = "SentenceTransformer"

    @property
    def named_prompts(self) -> Prompts:
        """The prompts; those without a text are empty."""
        return Prompts({name: prompt or "" for name, prompt in self.prompts.items()}, self.default_prompt_name)


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


class TransformerConfig(msgspec.Struct):
    """What the file of a Transformer module says."""

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
    query_length: _Count | None = None  #: tokens of a query at most, where a job says that its texts are queries
    document_length: _Count | None = None
    query_expansion: Json = None

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
GENERAL_KEYS = frozenset({*GeneralConfig.__struct_fields__, "similarity_fn_name", "__version__"})
POOLING_KEYS = frozenset({*_Pooling.__struct_fields__, "embedding_dimension", "word_embedding_dimension", *_FLAGS})
DENSE_KEYS = frozenset({*DenseConfig.__struct_fields__[1:], *_MODULE_NAMES})
NORMALIZE_KEYS = frozenset(_MODULE_NAMES)
TRANSFORMER_KEYS = frozenset({*TransformerConfig.__struct_fields__, "unpad_inputs"})
#: Arguments for loading a model, its tokenizer or its configuration that do not change a vector.
_LOADING = frozenset({"revision", "token", "cache_dir", "local_files_only", "trust_remote_code", "use_cache"})
_MODEL_KWARGS = _LOADING | {"torch_dtype", "dtype", "device_map", "low_cpu_mem_usage", "use_safetensors"}
_MODEL_KWARGS |= {"attn_implementation", "add_pooling_layer"}
_PROCESSOR_KWARGS = _LOADING | {"model_max_length", "padding_side", "use_fast", "clean_up_tokenization_spaces"}
#: The same for calls of a tokenizer.
_CALL_KWARGS = frozenset({"max_length", "truncation", "padding", "pad_to_multiple_of", "return_tensors"})
_CALLS = frozenset({"text", "common", "chat_template", "image", "audio", "video"})
_TRUNCATING = (True, "longest_first", "only_first", None)


class TransformerOutput(NamedTuple):
    """What a Transformer module computes."""

    task: str  #: which head it has
    name: str  #: of what it gives to the next module
    output: str  #: of the model's


TOKEN_EMBEDDINGS = TransformerOutput("feature-extraction", "token_embeddings", "last_hidden_state")


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
    prompts: Prompts = field(default_factory=Prompts)
    truncate_dim: int | None = None


def read_sentence_transformers_config(directory: Path) -> SentenceTransformersConfig | None:
    """Return the configuration of a model, or None if it has no `modules.json`.

    Raises:
        ModelError: `unknown_module`, it has a module or a setting that is not supported; `not_a_model`, a file that
            cannot be read.
    """
    if not (directory / "modules.json").exists():
        return None
    check_kind(directory, "SentenceTransformer")
    kinds, paths = read_modules(directory)
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise unsupported(f"modules.json begins with {kinds[:2]}; expected Transformer, then Pooling.")
    transformer = read_transformer(paths[0])
    if others := sorted({*(transformer.modality_config or {})} - {"text", "message"}):
        raise unsupported(f"its Transformer takes {others[0]} besides text.")
    pooling_file = _read_module(paths[1], POOLING_KEYS)
    pooling = convert(pooling_file, _Pooling, paths[1])
    general = _read_general(directory)
    return SentenceTransformersConfig(
        transformer=paths[0],
        pooling=_pooling_modes(pooling, pooling_file),
        include_prompt=pooling.include_prompt,
        stages=_stages(kinds[2:], paths[2:]),
        max_tokens=max_tokens_of(transformer, paths[0]),
        message=_chat_template(transformer),
        lower_case=bool(transformer.do_lower_case),
        prompts=general.named_prompts,
        truncate_dim=general.truncate_dim,
    )


def read_static_config(directory: Path) -> SentenceTransformersConfig:
    """Return the configuration of a model that looks up its tokens' vectors; `transformer` has its table.

    Raises:
        UnsupportedConfig: it has other modules.
        ModelError: as `read_sentence_transformers_config`.
    """
    check_kind(directory, "SentenceTransformer")
    kinds, paths = read_modules(directory)
    if kinds[:1] != ["StaticEmbedding"]:
        raise unsupported(f"modules.json begins with {kinds[:1]}; expected StaticEmbedding.")
    general = _read_general(directory)
    return SentenceTransformersConfig(
        transformer=paths[0],
        pooling=(),
        stages=_stages(kinds[1:], paths[1:]),
        prompts=general.named_prompts,
        truncate_dim=general.truncate_dim,
    )


def convert(config: Json, kind: Any, path: Path) -> Any:
    """Return an object of a configuration as a struct.

    Raises:
        ModelError: `not_a_model`, it is of another type.
    """
    try:
        return msgspec.convert(config, kind)
    except msgspec.ValidationError as error:
        raise ModelError("not_a_model", f"The configuration in {path} is invalid: {error}") from error


def read_modules(directory: Path) -> tuple[list[str], list[Path]]:
    """Return the class names of a model's modules, and their directories.

    Raises:
        ModelError: `unknown_module`, a class outside of sentence-transformers or a path outside of the directory;
            `not_a_model`, a file of another shape.
    """
    path = directory / "modules.json"
    modules = convert(read_json(path, list), list[dict[str, Json]], path)
    return [_module_type(module) for module in modules], [_module_path(directory, module) for module in modules]


def check_kind(directory: Path, kind: str) -> None:
    """Check that a model was saved as one of that kind, such as `SentenceTransformer`.

    Raises:
        ModelError: `unknown_module`, it is of another kind; the message names the task for it.
    """
    found = read_json(directory / GENERAL).get("model_type", "SentenceTransformer")
    if isinstance(found, str) and KIND_TASKS.get(found) == KIND_TASKS[kind]:
        return
    task = KIND_TASKS.get(found) if isinstance(found, str) else None
    hint = f" Submit it with --task {task}." if task else ""
    raise _refused(f"it is a {found}; expected a {kind}.{hint}")


def _module_type(module: Mapping[str, Json]) -> str:
    """Return the class name of a module of sentence-transformers; a module with its own code has another package."""
    package, _, name = str(module.get("type")).rpartition(".")
    if package.partition(".")[0] != "sentence_transformers":
        raise _refused(f"modules.json names {module.get('type')!r}, which is not part of sentence-transformers.")
    return name


def _module_path(directory: Path, module: Mapping[str, Json]) -> Path:
    path = PurePosixPath(str(module.get("path", "")))
    if path.is_absolute() or ".." in path.parts:
        raise _refused(f"modules.json refers to a path outside the model's directory: {str(path)!r}.")
    return directory / path


def read_transformer(directory: Path, expected: TransformerOutput = TOKEN_EMBEDDINGS) -> TransformerConfig:
    """Return the configuration of the Transformer module, whose file is named after the model type.

    Raises:
        UnsupportedConfig: it gives something else than `expected`, or has a setting that is not known here.
    """
    found = sorted(directory.glob("sentence_*_config.json"))
    raw = read_json(found[0]) if found else {}
    check_keys("Transformer", raw, TRANSFORMER_KEYS)
    config: TransformerConfig = convert(raw, TransformerConfig, directory)
    config.processor_kwargs = config.tokenizer_args or config.processor_kwargs or {}
    check_keys("Transformer: model_kwargs", config.model_args or config.model_kwargs, _MODEL_KWARGS)
    check_keys("Transformer: processor_kwargs", config.processor_kwargs, _PROCESSOR_KWARGS)
    check_keys("Transformer: config_kwargs", config.config_args or config.config_kwargs, _LOADING)
    check_keys("Transformer: processing_kwargs", config.processing_kwargs, _CALLS)
    for name in ("text", "common"):
        check_keys(f"Transformer: processing_kwargs: {name}", config.call(name), _CALL_KWARGS)
    for name in ("text", "common", "chat_template"):
        if config.call(name).get("truncation", True) not in _TRUNCATING:
            raise unsupported(f"its Transformer does not truncate long texts ({name}: truncation).")
    check_keys("Transformer: modality_config", config.way, frozenset({"method", "method_output_name", "format"}))
    method, state = config.way.get("method", "forward"), config.way.get("method_output_name", expected.output)
    output = TransformerOutput(config.transformer_task, config.module_output_name, state)
    if (method, output) != ("forward", expected):
        raise unsupported(
            f"its Transformer does {output.task} by {method}() and takes {state} as {output.name}; expected "
            f"{expected.name.replace('_', ' ')}."
        )
    if any(value is not None for value in (config.query_length, config.document_length, config.query_expansion)):
        raise unsupported("its Transformer cuts queries and documents to lengths of their own.")
    return config


def max_tokens_of(config: TransformerConfig, path: Path) -> int | None:
    """Return where texts are truncated: the setting of a call comes before that of the tokenizer."""
    calls = ("chat_template", "text", "common") if config.modality == "message" else ("text", "common")
    lengths = [config.call(name).get("max_length") for name in calls]
    lengths += [(config.processor_kwargs or {}).get("model_max_length"), config.max_seq_length]
    found = next((length for length in lengths if length is not None), None)
    tokens: int | None = convert(found, _Count | None, path)
    return tokens


def _chat_template(config: TransformerConfig) -> ChatTemplateConfig | None:
    if config.modality != "message":
        return None
    kind = config.way.get("format")
    if kind not in ("flat", "structured"):
        raise unsupported(f"its messages have the format {kind!r}; expected flat or structured.")
    template = config.call("chat_template")
    variables = {name: value for name, value in template.items() if name not in {*_CALL_KWARGS, "restore_suffix"}}
    return ChatTemplateConfig(kind == "structured", variables, bool(template.get("restore_suffix", True)))


def _read_general(directory: Path) -> GeneralConfig:
    path = directory / GENERAL
    raw = read_json(path)
    check_keys(GENERAL, raw, GENERAL_KEYS)
    config: GeneralConfig = convert(raw, GeneralConfig, path)
    return config


def check_keys(location: str, config: Mapping[str, Json] | None, known: frozenset[str]) -> None:
    """Refuse keys that are not known, unless their value is empty.

    Raises:
        UnsupportedConfig: there is one.
    """
    for name, value in (config or {}).items():
        if name not in known and value not in (None, {}, [], ""):
            raise unsupported(f"{location} sets {name}, which is not supported.")


def _pooling_modes(pooling: _Pooling, config: Mapping[str, Json]) -> tuple[str, ...]:
    named = pooling.pooling_mode
    if named is None:
        named = [mode for flag, mode in _FLAGS.items() if config.get(flag)] or ["mean"]
    modes = (named,) if isinstance(named, str) else tuple(named)
    if not modes:
        raise unsupported("its list of pooling modes is empty.")
    for mode in modes:
        if mode not in POOLING_MODES:
            raise unsupported(f"its pooling mode is {mode!r}; known: {', '.join(POOLING_MODES)}.")
    return modes


def _stages(kinds: Sequence[str], paths: Sequence[Path]) -> tuple[DenseConfig | NormalizeConfig, ...]:
    return tuple(_stage(kind, path) for kind, path in zip(kinds, paths, strict=True))


def _stage(kind: str, directory: Path) -> DenseConfig | NormalizeConfig:
    known = {"Dense": DENSE_KEYS, "Normalize": NORMALIZE_KEYS}.get(kind)
    if known is None:
        raise unsupported(f"it has a module {kind}; known: Transformer, Pooling, Dense, Normalize.")
    config = _read_module(directory, known)
    source = config.get("module_input_name") or "sentence_embedding"
    target = config.get("module_output_name") or source
    if (source, target) != ("sentence_embedding", "sentence_embedding"):
        raise unsupported(f"its {kind} maps {source} to {target}; expected the sentence embedding.")
    if kind == "Normalize":
        return NormalizeConfig()
    dense: DenseConfig = convert({**config, "directory": directory}, DenseConfig, directory)
    return dense


def _read_module(directory: Path, known: frozenset[str]) -> Mapping[str, Json]:
    config: Mapping[str, Json] = read_json(directory / "config.json")
    check_keys(f"{directory.name}/config.json", config, known)
    return config


class UnsupportedConfig(ModelError):
    """A configuration that only the modules of sentence-transformers itself can follow."""


def unsupported(what: str) -> UnsupportedConfig:
    """Return the error of a configuration that is not followed here."""
    return UnsupportedConfig("unknown_module", f"{_CANNOT_RUN}: {what}")


def _refused(what: str) -> ModelError:
    return ModelError("unknown_module", f"{_CANNOT_RUN}: {what}")
