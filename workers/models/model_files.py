"""Checks of a model's files by name and first bytes, before a library opens any of them."""

from collections.abc import Sequence
from pathlib import Path

from common.errors import ModelError
from common.media_types import LFS_POINTER
from workers.models.adapters import is_adapter

_SAFE = ".safetensors"
#: Weight files that are pickles (or other frameworks'), by their endings.
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".pkl")


def check_files(model: str, names: Sequence[str], allow_pickle: bool) -> None:
    """Check by the names of its files that a whole model may be opened.

    Raises:
        ModelError: `adapter_only`, `unsafe_weights`.
    """
    if is_adapter(names):
        raise ModelError(
            "adapter_only",
            f"{model} is an adapter, which names another model as its base; expected a whole model. "
            "Merge it into its base (peft: merge_and_unload) and save that.",
        )
    pickles = _pickles(names)
    if pickles and not allow_pickle and not any(name.endswith(_SAFE) for name in names):
        raise ModelError(
            "unsafe_weights",
            f"{model} has weights only in {pickles[0]}, a format that can run code when it is opened; expected "
            "safetensors. Convert the model where you trust it (model.save_pretrained() writes safetensors), or use a "
            "revision that has them.",
        )


def check_downloaded(directory: Path) -> None:
    """Check that a model's files are not Git LFS pointers.

    Raises:
        ModelError: `not_a_model`.
    """
    for path in sorted(directory.iterdir()):
        if path.is_file() and is_lfs_pointer(path):
            raise ModelError(
                "not_a_model",
                f"{path} is a Git LFS pointer of a few lines, not the file itself. Fetch it: git lfs pull.",
            )


def is_lfs_pointer(path: Path) -> bool:
    """Return whether a file is a pointer to one that Git LFS stores elsewhere.

    Source: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
    """
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def has_weights(names: Sequence[str]) -> bool:
    """Whether any of a model's files holds weights."""
    return any(name.endswith(_SAFE) for name in names) or bool(_pickles(names))


def _pickles(names: Sequence[str]) -> list[str]:
    return sorted(name for name in names if name.endswith(_PICKLES) and name != "training_args.bin")
