"""Model loading: models, tokenizers and processors from a local directory only.

Every runner loads its model here, so that the rules hold for all: local files only; safetensors only and no code from
the model's repository, unless the worker was started with other options; no base model but that which the resolver
found for an adapter; and no randomly initialized weights (transformers only warns when it initializes a missing head).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME
from transformers.utils import logging as transformers_logging

from common.distribution import install_command
from common.errors import ModelError, WorkerError, first_line
from common.records import Json
from workers.inference.core.device_errors import is_out_of_memory
from workers.inference.core.runner import Runner
from workers.inference.core.token_budget import TokenBudget
from workers.inference.generation.limits import cap_model_config
from workers.inference.loading.adapters import add_adapter, head_size, share_weights, supplied_weights
from workers.inference.loading.dtypes import AUTO, INT8, dtype_name, resolve_dtype, to_device
from workers.models.file_references import (
    CONFIG,
    PROCESSOR_CONFIGS,
    TOKENIZER_CONFIG,
    check_code,
    check_references,
    processor_settings,
    tokenizer_settings,
)
from workers.models.load_options import DEFAULT_OPTIONS, LoadOptions
from workers.models.model_files import check_downloaded, check_files, has_weights

#: Missing weights that an error names.
_NAMED = 4
#: Older names of an auto class, which transformers still reads.
_OLDER_NAMES = {"AutoImageProcessor": ("AutoFeatureExtractor",)}
#: What the libraries raise over files that are missing, damaged or of another kind.
LOAD_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ImportError,
    RuntimeError,
    SafetensorError,
)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The directory that a model is loaded from, a snapshot, and how."""

    directory: Path
    options: LoadOptions = DEFAULT_OPTIONS

    @classmethod
    def of(cls, task: str, model: Path | None, options: LoadOptions) -> "ModelSource":
        """Return the source of a runner's model.

        Raises:
            ModelError: `model_not_found`, the job names no model.
        """
        if model is None:
            raise ModelError("model_not_found", f"{task} needs a model: pass one with --model.")
        return cls(model, options)

    @property
    def adapter(self) -> Path | None:
        """The directory of the adapter that the model is loaded with."""
        return Path(self.options.adapter) if self.options.adapter else None

    def inside(self, directory: Path) -> "ModelSource":
        """Return the same options for another directory, one within this."""
        return replace(self, directory=directory)


def load_model(auto_class: Any, source: ModelSource, device: str, *, ignore_missing: Sequence[str] = ()) -> Any:
    """Return the model of `source`, in evaluation mode, on `device`.

    Args:
        auto_class: an `AutoModelFor...` class: the head that the task needs.
        source: its directory, and the options.
        device: `cpu`, `cuda:0`.
        ignore_missing: regular expressions (`re.search`) of weights that the task can do without, such as a
            pooler's; an option that uses them checks `invented_weights` first.

    Raises:
        ModelError: `model_not_found`, `not_a_model`, `adapter_only`, `unsafe_weights`, `missing_weights`,
            `bad_param`.
    """
    silence_transformers()
    options = source.options
    insists = options.dtype != AUTO
    chosen = options.dtype if insists else options.default_dtype
    wanted = resolve_dtype(chosen, device, insists=insists)
    check_directory(source)
    check_own_code(source, [CONFIG], "AutoConfig", auto_class.__name__)
    if source.adapter and options.dtype == INT8:
        raise ModelError("bad_param", "dtype=int8 is not available for adapters: leave it out.")
    supplied = supplied_weights(source.adapter) if source.adapter else {}
    values = head_size(load_config(source), auto_class.__name__, supplied) if supplied else {}
    try:
        model, info = auto_class.from_pretrained(
            source.directory,
            dtype=wanted,
            local_files_only=True,
            use_safetensors=None if options.allow_pickle else True,  # None: safetensors where there are any
            trust_remote_code=source.options.runs_code,
            output_loading_info=True,
            **values,
        )
    except LOAD_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise _explained(auto_class, source.directory, error) from error
    lacking = [name for name in lacking_weights(model, info["missing_keys"]) if name not in supplied]
    invented = [name for name in lacking if any(re.search(pattern, name) for pattern in ignore_missing)]
    check_complete(model, [name for name in lacking if name not in invented], source.directory)
    model.invented_weights = invented
    if source.adapter:
        model = add_adapter(model, source.adapter)
        model.adapter_directory = options.adapter
    cap_model_config(model, options.max_new_tokens)
    model = to_device(model, chosen, device, insists=insists)
    if source.adapter:
        share_weights(model, f"{source.directory} {auto_class.__name__} {chosen} {device}")
    return model


def invented_weights(model: Any) -> list[str]:
    """Return the names of the weights that no file has and `load_model` allowed to be missing."""
    found: list[str] = model.invented_weights
    return found


def load_config(source: ModelSource, **values: Any) -> Any:
    """Return the configuration of the model of `source`, with these values replacing its own.

    Raises:
        ModelError: as `load_model`.
    """
    check_directory(source)
    check_own_code(source, [CONFIG], "AutoConfig")
    try:
        return AutoConfig.from_pretrained(
            source.directory, local_files_only=True, trust_remote_code=source.options.runs_code, **values
        )
    except LOAD_ERRORS as error:
        raise ModelError(
            "not_a_model", f"{source.directory}/config.json does not describe a known model: {error}"[:1000]
        ) from error


def load_without_weights(auto_class: Any, source: ModelSource) -> Any:
    """Return the model of `source` on the device `meta`: its architecture and its configurations.

    Raises:
        ModelError: as `load_model`, but for `missing_weights`.
    """
    silence_transformers()
    config = load_config(source)
    check_own_code(source, [CONFIG], auto_class.__name__)
    try:
        with torch.device("meta"):
            model = auto_class.from_config(config, trust_remote_code=source.options.runs_code)
        if (source.directory / GENERATION_CONFIG_NAME).exists():
            model.generation_config = GenerationConfig.from_pretrained(source.directory, local_files_only=True)
    except LOAD_ERRORS as error:
        raise _explained(auto_class, source.directory, error) from error
    cap_model_config(model, source.options.max_new_tokens)
    return model


def load_tokenizer(source: ModelSource) -> Any:
    """Return the tokenizer of `source`.

    Raises:
        ModelError: `model_not_found`, `not_a_model`, `no_tokenizer`.
    """
    silence_transformers()
    check_directory(source)
    if source.adapter and (source.adapter / TOKENIZER_CONFIG).is_file():
        source = source.inside(source.adapter)
    directory = source.directory
    check_own_code(source, [TOKENIZER_CONFIG, CONFIG], "AutoTokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            directory,
            local_files_only=True,
            trust_remote_code=source.options.runs_code,
            **tokenizer_settings(directory),
        )
    except LOAD_ERRORS as error:
        raise ModelError(
            "no_tokenizer", f"The tokenizer in {directory} cannot be loaded: {first_line(error)}"
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ModelError(
            "no_tokenizer",
            f"{directory} has no tokenizer: expected tokenizer.json, or the vocabulary files of its class. "
            "Save it beside the model with tokenizer.save_pretrained().",
        )
    return tokenizer


def load_processor(auto_class: Any, source: ModelSource, what: str) -> Any:
    """Return the processor that prepares files for the model of `source`.

    Args:
        auto_class: `AutoImageProcessor`, `AutoFeatureExtractor`.
        source: the model's directory, and the options.
        what: its name in errors ("image processor").

    Raises:
        ModelError: `model_not_found`, `not_a_model`, `no_processor`.
        WorkerError: `missing_library`, the processor needs one that is not installed.
    """
    silence_transformers()
    check_directory(source)
    name = auto_class.__name__
    check_own_code(source, [*PROCESSOR_CONFIGS, CONFIG], name, *_OLDER_NAMES.get(name, ()))
    try:
        return auto_class.from_pretrained(
            source.directory,
            local_files_only=True,
            trust_remote_code=source.options.runs_code,
            **processor_settings(source.directory),
        )
    except ImportError as error:
        raise missing_library(f"The {what} in {source.directory} cannot be loaded: {first_line(error)}") from error
    except LOAD_ERRORS as error:
        raise ModelError(
            "no_processor",
            f"The {what} in {source.directory} cannot be loaded: {first_line(error)} "
            f"Save it beside the model with save_pretrained().",
        ) from error


def missing_library(what: str, extra: str = "vision") -> WorkerError:
    """Return the error of a library that is not installed.

    Args:
        what: what needs it, without a period.
        extra: installs it.
    """
    return WorkerError("missing_library", f"{what}. Install it: {install_command(f'worker,{extra}')}.")


def check_directory(source: ModelSource) -> None:
    """Check that the directory holds a model that may be loaded, before any library opens it.

    Raises:
        ModelError: `model_not_found`, `not_a_model`, `adapter_only`, `unsafe_weights`, and what `check_references`
            finds.
    """
    directory = source.directory
    if not directory.is_dir():
        raise ModelError("model_not_found", f"There is no model directory {directory}.")
    names = sorted(path.name for path in directory.iterdir())
    check_files(str(directory), names, source.options.allow_pickle)
    if "config.json" not in names:
        found = ", ".join(names[:5]) or "nothing"
        raise ModelError("not_a_model", f"{directory} is not a model: expected config.json, found {found}.")
    if not has_weights(names):
        raise ModelError("not_a_model", f"{directory} has no weights: expected model.safetensors.")
    check_downloaded(directory)
    for path in filter(None, (directory, source.adapter)):
        check_references(path, allow_pickle=source.options.allow_pickle, allow_code=source.options.runs_code)


def check_own_code(source: ModelSource, names: Sequence[str], *classes: str) -> None:
    """Refuse a model with its own code for one of these auto classes, unless code may run or the job ignores it.

    Args:
        source: its directory, and the options.
        names: the configuration files that may name the code.
        classes: the auto classes about to be used.

    Raises:
        ModelError: `custom_code`.
    """
    if not source.options.allow_remote_code and not source.options.ignore_auto_map:
        check_code(source.directory, names, classes)


class ModelRunner(Runner):
    """A runner whose model is a torch module in `_model`."""

    budget: TokenBudget
    _model: Any

    def is_deterministic(self, params: Mapping[str, Json]) -> bool:
        """Return True: forward passes are deterministic."""
        return True

    def has_adapter(self, directory: str) -> bool:
        """Return whether the model was loaded with the adapter in a directory."""
        return getattr(self._model, "adapter_directory", "") == directory

    def memory_bytes(self) -> int:
        """Return the bytes of the model's parameters and buffers."""
        return memory_bytes(self._model)

    def run_info(self) -> dict[str, Json]:
        """Return the model's dtype and attention implementation."""
        return {"dtype": dtype_name(self._model), "attention": self._model.config._attn_implementation}


def memory_bytes(model: Any) -> int:
    """Return how many bytes the parameters and buffers of `model` take; shared ones count once."""
    tensors = {
        id(tensor) if tensor.is_mkldnn else tensor.data_ptr(): tensor
        for tensor in (*model.parameters(), *model.buffers())
    }
    return sum(tensor.nelement() * tensor.element_size() for tensor in tensors.values())


def silence_transformers() -> None:
    """Silence transformers' warnings and progress bars: hugqueue's own errors and logs report what matters."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def lacking_weights(model: Any, missing: set[str]) -> list[str]:
    """Return the weights that no file has: parameters, and buffers of statistics; others are computed or tied."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    statistics = {name for name, _ in model.named_buffers() if name.endswith(("running_mean", "running_var"))}
    return sorted(missing & (parameters | statistics))


def check_complete(model: Any, lacking: Sequence[str], directory: Path) -> None:
    """Refuse a model that lacks weights.

    Raises:
        ModelError: `missing_weights`.
    """
    if not lacking:
        return
    more = f" and {len(lacking) - _NAMED} more" if len(lacking) > _NAMED else ""
    raise ModelError(
        "missing_weights",
        f"{directory} lacks weights that the task needs: {', '.join(lacking[:_NAMED])}{more}. "
        f"It was saved as {_architecture(model.config)}; this task loads it as {type(model).__name__}. "
        "Use a model fine-tuned for this task.",
    )


def _explained(auto_class: Any, directory: Path, error: Exception) -> ModelError:
    name = auto_class.__name__
    text = first_line(error)
    if "Unrecognized configuration class" in text:
        return ModelError(
            "missing_weights",
            f"The model in {directory} has no {name.removeprefix('AutoModelFor')} head in transformers: "
            f"its architecture cannot do this task. ({text})",
        )
    return ModelError("not_a_model", f"The model in {directory} cannot be loaded as {name}: {text}")


def _architecture(config: Any) -> str:
    names: list[str] | None = getattr(config, "architectures", None)
    return " / ".join(names) if names else "an unnamed architecture"
