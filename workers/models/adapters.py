"""Adapters (LoRA and others of peft): what their configuration may name, before any library reads it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import ModelError
from workers.models.file_references import read_json

#: The file that makes a directory an adapter, and the weights that belong to it.
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: Weights of an adapter that are a pickle.
ADAPTER_PICKLE = "adapter_model.bin"
#: Kinds that change layers of the base model. Others put vectors before its inputs, or name further adapters.
_KINDS = (
    "ADALORA", "BOFT", "FOURIERFT", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "LORA", "OFT", "RANDLORA", "ROAD",
    "VERA",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class AdapterBase:
    """What an adapter says of the model that it adapts."""

    model: str
    revision: str | None


def is_adapter(names: Sequence[str]) -> bool:
    """Whether a model with files of these names is an adapter."""
    return ADAPTER_CONFIG in names


def read_base(model: str, directory: Path, names: Sequence[str], allow_pickle: bool) -> AdapterBase:
    """Return the base of an adapter, whose files are checked.

    Args:
        model: its name in messages.
        directory: the adapter's.
        names: of the files there.
        allow_pickle: whether its weights may be a pickle.

    Raises:
        ModelError: `adapter_only`, it names no base; `adapter_unsupported`; `unsafe_weights`; `not_a_model`.
    """
    config = read_json(directory / ADAPTER_CONFIG)
    kind, base = config.get("peft_type"), config.get("base_model_name_or_path")
    if kind not in _KINDS or config.get("megatron_config"):
        raise ModelError(
            "adapter_unsupported",
            f"{model} is an adapter of the kind {kind}, which is not supported; expected one of {', '.join(_KINDS)}.",
        )
    if ADAPTER_WEIGHTS not in names and not (allow_pickle and ADAPTER_PICKLE in names):
        if ADAPTER_PICKLE in names:
            raise ModelError(
                "unsafe_weights",
                f"{model} has weights only in {ADAPTER_PICKLE}, a format that can run code when it is opened; expected "
                f"{ADAPTER_WEIGHTS}. Save the adapter again with save_pretrained().",
            )
        raise ModelError("not_a_model", f"{model} is an adapter without weights: expected {ADAPTER_WEIGHTS}.")
    if not isinstance(base, str) or not base:
        raise ModelError(
            "adapter_only",
            f"{model} is an adapter that does not name its base; expected base_model_name_or_path in {ADAPTER_CONFIG}. "
            "Or merge it into its base (peft: merge_and_unload) and save that.",
        )
    revision = config.get("revision")
    return AdapterBase(base, revision if isinstance(revision, str) and revision else None)
