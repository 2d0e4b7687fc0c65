"""Files of sentence-transformers models, checked before its own modules read them.

The library imports what `modules.json` names, and passes on what its configurations say: here a class must be one of
its own modules, a path must stay inside the model's directory, weights must be safetensors, and nothing may name code,
a repository or a file elsewhere.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from common.errors import ModelError
from common.records import Json
from workers.inference.embedding.pooling import make_activation
from workers.inference.embedding.sentence_transformers_config import TRANSFORMER_KEYS
from workers.inference.loading.loader import ModelSource, check_directory
from workers.models.file_references import (
    CONFIG,
    PROCESSOR_CONFIGS,
    TOKENIZER_CONFIG,
    check_code,
    check_inside,
    check_references,
    read_json,
    tokenizer_settings,
)
from workers.models.model_files import check_downloaded, check_files

#: The class that PyLate's models name; one of sentence-transformers stands in for it.
PYLATE_DENSE = "pylate.models.Dense.Dense"
_STAND_INS = {PYLATE_DENSE: "sentence_transformers.base.modules.dense.Dense"}
_PACKAGE = "sentence_transformers."
#: Files in which a Router lists its modules.
_ROUTER_CONFIGS = ("router_config.json", CONFIG)
_WORD_EMBEDDINGS_CONFIG = "wordembedding_config.json"
_ROUTERS = ("Router", "Asym")
_TRANSFORMERS = ("Transformer", "CLIPModel", "MLMTransformer")
#: Automatic classes that a Transformer may use.
_AUTO_CLASSES = (
    *("AutoConfig", "AutoModel", "AutoModelForMaskedLM", "AutoModelForSequenceClassification", "AutoModelForCausalLM"),
    *("AutoModelForMultimodalLM", "AutoTokenizer", "AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor"),
)
_METHOD = re.compile(r"forward|get_\w+_features", re.ASCII)
#: Settings of a Transformer that hold arguments for loading it.
_LOADING_KWARGS = tuple(
    f"{what}_{kind}" for what in ("model", "processor", "tokenizer", "config") for kind in ("kwargs", "args")
)
#: Arguments in a configuration that name code, credentials or other places; the values are taken only if empty.
_REFUSED_KWARGS = frozenset(
    {"trust_remote_code", "code_revision", "subfolder", "cache_dir", "token", "revision", "adapter_kwargs", "auto_map"}
)


def check_module_files(source: ModelSource) -> None:
    """Check the files of a model that the modules of sentence-transformers are about to read.

    Args:
        source: its directory, with `modules.json` or the files of a model of transformers alone, and the options.

    Raises:
        ModelError: `unknown_module`, a class that is not one of the library's modules; `model_not_allowed`, a path
            outside the directory; `unsafe_weights`; `custom_code`; `not_a_model`.
    """
    directory = source.directory
    if not (directory / "modules.json").exists():
        _check_transformer(source, directory)
        return
    for module in read_json(directory / "modules.json", list):
        if not isinstance(module, dict):
            raise ModelError("not_a_model", f"{directory}/modules.json must list objects, found {module!r:.100}.")
        _check_module(source, directory, module.get("type"), module.get("path", ""))


def _check_module(source: ModelSource, base: Path, kind: Json, path: Json) -> None:
    name = _class_name(base, kind)
    if path != "":
        check_inside(base, path)
    directory = base / path
    if not directory.is_dir():
        if name == "Normalize":  # it has no files, and git keeps no empty directory
            return
        raise ModelError("not_a_model", f"{base} has no directory {path!r}, which its {name} module needs.")
    if name in _TRANSFORMERS:
        _check_transformer(source, directory)
        return
    check_downloaded(directory)
    check_files(str(directory), [entry.name for entry in directory.iterdir()], source.options.allow_pickle)
    _check_tokenizer(source, directory)
    config = read_json(directory / CONFIG)
    if name in _ROUTERS:
        for part_kind, part in _routed(directory):
            _check_module(source, directory, part_kind, part)
    elif name == "Dense" and "activation_function" in config:
        make_activation(str(config["activation_function"]), "Its Dense layer")
    elif name == "WordEmbeddings":
        _class_name(directory, read_json(directory / _WORD_EMBEDDINGS_CONFIG).get("tokenizer_class"))
    elif name == "SparseStaticEmbedding" and config.get("path"):
        raise ModelError("model_not_allowed", f"{directory} takes its weights from {config['path']!r}.")


def _class_name(base: Path, kind: Json) -> str:
    """Return the name of a class of sentence-transformers; importing any other would run its code."""
    found = _STAND_INS.get(kind, kind) if isinstance(kind, str) else kind
    package, _, name = str(found).rpartition(".")
    if not f"{package}.".startswith(_PACKAGE) or not all(part.isidentifier() for part in package.split(".")):
        raise ModelError(
            "unknown_module",
            f"{base} names the module {kind!r:.200}, which is not part of sentence-transformers; this worker runs no "
            "module of a model's own.",
        )
    return name


def _routed(directory: Path) -> Iterator[tuple[Json, Json]]:
    """Yield the class and the directory of each module of a Router."""
    for name in _ROUTER_CONFIGS:
        types = read_json(directory / name).get("types")
        if types is not None:
            if not isinstance(types, dict):
                raise ModelError("not_a_model", f"{directory / name}: types must be an object, found {types!r:.100}.")
            for part, kind in types.items():
                yield kind, part


def tokenizer_files(directory: Path) -> dict[str, None]:
    """Return the settings of all tokenizers of a model that name files, each set to None.

    As `workers.models.file_references.tokenizer_settings`: they have the paths of the machine that saved them.
    """
    paths = sorted(directory.rglob(TOKENIZER_CONFIG))
    return {name: None for path in paths for name in tokenizer_settings(path.parent)}


def _check_tokenizer(source: ModelSource, directory: Path) -> None:
    """Check the tokenizer of a module that takes no settings for it."""
    check_references(directory, allow_pickle=source.options.allow_pickle, allow_code=False)
    check_code(directory, [TOKENIZER_CONFIG], _AUTO_CLASSES)
    config = read_json(directory / TOKENIZER_CONFIG)
    for name in tokenizer_settings(directory):
        if config[name] is not None:
            check_inside(directory / TOKENIZER_CONFIG, config[name])


def _check_transformer(source: ModelSource, directory: Path) -> None:
    check_directory(source.inside(directory))
    if not source.options.ignore_auto_map:
        check_code(directory, [CONFIG, TOKENIZER_CONFIG, *PROCESSOR_CONFIGS], _AUTO_CLASSES)
    for path in sorted(directory.glob("sentence_*_config.json")):
        config = read_json(path)
        for name, value in config.items():
            if name not in TRANSFORMER_KEYS and value:  # some name a tokenizer or a processor elsewhere
                raise ModelError("model_not_allowed", f"{path} sets {name} to {value!r:.200}; take it out of the file.")
            if name in _LOADING_KWARGS:
                _check_kwargs(path, name, value)
        _check_methods(path, config.get("modality_config"))


def _check_methods(path: Path, modalities: Json) -> None:
    """Check the methods of the model that the library would call by their names."""
    for way in modalities.values() if isinstance(modalities, Mapping) else ():
        method = way.get("method", "forward") if isinstance(way, Mapping) else way
        if not isinstance(method, str) or not _METHOD.fullmatch(method):
            raise ModelError("unknown_module", f"{path} calls {method!r:.200}; expected forward, or get_..._features.")


def _check_kwargs(path: Path, name: str, value: Json) -> None:
    """Check arguments that the library would pass on to transformers."""
    for key, part in value.items() if isinstance(value, Mapping) else ():
        names_place = isinstance(part, str) and key != "chat_template" and ("/" in part or ".." in part)
        if names_place or (part and (key in _REFUSED_KWARGS or key.endswith("_file"))):
            raise ModelError(
                "model_not_allowed", f"{path} sets {name}: {key} to {part!r:.200}; take it out of the file."
            )
        _check_kwargs(path, f"{name}: {key}", part)
