"""Models and tokenizers out of a directory, and from nowhere else.

Whatever runner loads a model loads it here, so that the rules hold for all: local files only, safetensors
only, no code from the model's repository, no base model that an adapter names, and no weights made up on the spot
(transformers only warns when it invents a missing head). Knows no task.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from common.errors import ModelError
from common.values import Json
from workers.runners.batching import is_out_of_memory

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
#: Weight files that are pickles (or other frameworks'), by their endings.
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".pkl")
#: How many missing weights an error names.
_NAMED = 4
#: What the libraries raise over files that are missing, damaged or of another kind.
_LOAD_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ImportError,
    RuntimeError,
    SafetensorError,
)


def load_model(
    auto_class: Any, directory: Path, dtype: Json, device: str, *, ignore_missing: Sequence[str] = ()
) -> Any:
    """Return the model of `directory`, in evaluation mode, on `device`.

    Args:
        auto_class: an `AutoModelFor...` class: the head that the task needs.
        directory: a snapshot: config.json and safetensors weights.
        dtype: a name from `DTYPES`, or None for the device's own (`resolve_dtype`).
        device: `cpu`, `cuda:0`.
        ignore_missing: patterns (`re.search`) of weights that the task can do without, as a pooler.

    Raises:
        ModelError: `model_not_found`, `not_a_model`, `adapter_only`, `unsafe_weights`, `missing_weights`,
            `bad_param`.
    """
    quieten()
    wanted = resolve_dtype(dtype, device)
    check_directory(directory)
    try:
        model, info = auto_class.from_pretrained(
            directory,
            dtype=wanted,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except _LOAD_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise _explained(auto_class, directory, error) from error
    _check_complete(model, info["missing_keys"], ignore_missing, directory)
    return model.to(device)


def load_tokenizer(directory: Path) -> Any:
    """Return the tokenizer of `directory`.

    Raises:
        ModelError: `model_not_found`, `not_a_model`, `no_tokenizer`.
    """
    quieten()
    check_directory(directory)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except _LOAD_ERRORS as error:
        raise ModelError(
            "no_tokenizer", f"The tokenizer in {directory} cannot be loaded: {_first_line(error)}"
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ModelError(
            "no_tokenizer",
            f"{directory} has no tokenizer: expected tokenizer.json or the vocabulary of its class. "
            "Save it beside the model with tokenizer.save_pretrained().",
        )
    return tokenizer


def resolve_dtype(value: Json, device: str) -> torch.dtype:
    """Return the torch dtype named `value`; None means float32 on a CPU, and half precision on CUDA.

    Raises:
        ModelError: `bad_param`, there is no such dtype.
    """
    if value is None:
        if not device.startswith("cuda"):
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if isinstance(value, str) and value in DTYPES:
        return DTYPES[value]
    raise ModelError("bad_param", f"dtype must be one of {', '.join(DTYPES)}, found {value!r}.")


def check_directory(directory: Path) -> None:
    """Check that `directory` holds a model that may be loaded, before any library opens it.

    Raises:
        ModelError: `model_not_found`, `not_a_model`, `adapter_only`, `unsafe_weights`.
    """
    if not directory.is_dir():
        raise ModelError("model_not_found", f"There is no model directory {directory}.")
    names = {path.name for path in directory.iterdir()}
    if "adapter_config.json" in names:
        raise ModelError(
            "adapter_only",
            f"{directory} holds an adapter, which names another model as its base; expected a whole model. "
            "Merge the adapter into its base (peft: merge_and_unload) and save that.",
        )
    if "config.json" not in names:
        found = ", ".join(sorted(names)[:5]) or "nothing"
        raise ModelError("not_a_model", f"{directory} is no model: expected config.json, found {found}.")
    _check_weights(directory, names)


def memory_bytes(model: Any) -> int:
    """Return how many bytes the parameters and buffers of `model` take; shared ones count once."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.nelement() * tensor.element_size() for tensor in tensors.values())


def quieten() -> None:
    """Keep transformers from talking: its warnings and bars are for notebooks, and ours say what matters."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _check_weights(directory: Path, names: set[str]) -> None:
    if any(name.endswith(".safetensors") for name in names):
        return
    pickles = sorted(name for name in names if name.endswith(_PICKLES) and name != "training_args.bin")
    if pickles:
        raise ModelError(
            "unsafe_weights",
            f"{directory} has its weights only in {pickles[0]}, a format that can run code when opened; "
            "expected safetensors. Convert it once, where you trust it: "
            "model.save_pretrained(DIRECTORY) writes safetensors.",
        )
    raise ModelError("not_a_model", f"{directory} has no weights: expected model.safetensors.")


def _check_complete(model: Any, missing: set[str], ignored: Sequence[str], directory: Path) -> None:
    """Refuse a model with weights that no file gave (buffers are computed; tied weights are off the list)."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    lacking = sorted(
        name for name in missing if name in parameters and not any(re.search(pattern, name) for pattern in ignored)
    )
    if not lacking:
        return
    more = f" and {len(lacking) - _NAMED} more" if len(lacking) > _NAMED else ""
    raise ModelError(
        "missing_weights",
        f"{directory} lacks weights that the task needs: {', '.join(lacking[:_NAMED])}{more}. "
        f"It was saved as {_architecture(model.config)}; this task loads it as {type(model).__name__}. "
        "Take a model fine-tuned for this task.",
    )


def _explained(auto_class: Any, directory: Path, error: Exception) -> ModelError:
    name = auto_class.__name__
    text = _first_line(error)
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


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:500]
