"""Model libraries that a fork server has imported: its forks import them in no time, and lack them until they do.

To import torch, transformers and what trains with them takes longer than most of what tests do with them.
"""

import gc
import mmap
import os
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

#: Packages and modules: what imports one of a group gets this group and those before it.
LIBRARIES = (
    ("fsspec", "fsspec.implementations.local", "fsspec.implementations.memory", "huggingface_hub"),
    ("torch",),
    (
        *("transformers.pipelines", "transformers.models.auto.modeling_auto", "transformers.models.bert.modeling_bert"),
        *("transformers.models.bert.tokenization_bert", "transformers.models.gpt2.modeling_gpt2"),
    ),
    ("workers.inference.tasks", "workers.device.server.run_chunk"),
    ("accelerate.commands.launch", "datasets", "peft", "sklearn.metrics"),
    ("transformers.trainer", "workers.training.trainer"),
    ("sentence_transformers", "trl.trainer.sft_trainer", "workers.training.trainer.encoders"),
)
#: What a worker sets for its children, and has no effect on tests.
_NO_DIFFERENCE = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_TELEMETRY")
_NEVER_HIDDEN = {*sys.stdlib_module_names, "common", "producer"}


def prepare_to_fork() -> None:
    """Make sure that a fork loses no thread, and does not copy all objects with its first collection of garbage."""
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    assert len(set(threads) - {"jemalloc_bg_thd"}) == 1, f"a fork would lose some of {threads}"
    gc.collect()
    gc.freeze()


class ModelLibraries(MetaPathFinder, Loader):
    """Finds in forks of this process what `load_if_wanted` has imported in it."""

    def __init__(self) -> None:
        self._environ = _read_at_import(os.environ)
        self._wanted = mmap.mmap(-1, 1)  # forks write it
        self._groups: list[dict[str, ModuleType]] = []

    def install(self) -> None:
        """Take part in the imports of this process and its forks."""
        sys.meta_path.insert(0, self)

    def load_if_wanted(self) -> None:
        """Import the libraries once a fork has imported torch: where none does, the seconds would be wasted."""
        if self._groups or not self._wanted[0]:
            return
        os.environ.update(dict.fromkeys(_NO_DIFFERENCE, "1"))
        groups = [_imported(names) for names in LIBRARIES]
        for group in groups:
            for name in group:
                del sys.modules[name]
        self._groups = groups
        prepare_to_fork()

    def enter(self, environ: Mapping[str, str]) -> None:
        """In a fork with this environment, offer no libraries that have read another."""
        if self in sys.meta_path and _read_at_import(environ) != self._environ:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module that is hidden."""
        if fullname == "torch._C":  # programs look for `torch` itself without importing it
            self._wanted[0] = 1
        module = self._hidden(fullname)
        if module is None:
            return None
        real = module.__spec__ or ModuleSpec(fullname, None)
        spec = ModuleSpec(fullname, self, origin=real.origin, loader_state=real)
        spec.submodule_search_locations = real.submodule_search_locations
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Return the module as it was imported."""
        return self._hidden(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Show the module's group and those before it, instead of executing the module once more."""
        spec: Any = module.__spec__
        module.__spec__ = spec.loader_state
        last = next(at for at, group in enumerate(self._groups) if spec.name in group)
        for group in self._groups[: last + 1]:
            sys.modules.update(group)
        self._groups = self._groups[last + 1 :]

    def get_code(self, fullname: str) -> Any:
        """Return the code of a module that is run as a program."""
        module = self._hidden(fullname)
        loader: Any = module and module.__spec__ and module.__spec__.loader
        return loader.get_code(fullname)

    def _hidden(self, name: str) -> ModuleType | None:
        return next((group[name] for group in self._groups if name in group), None)


def _imported(names: Sequence[str]) -> dict[str, ModuleType]:
    """Import modules, and those in packages; return all that this has imported, but for what processes have anyway."""
    before = set(sys.modules)
    for name in names:
        module = import_module(name)
        if name.startswith("workers."):
            for found in pkgutil.iter_modules(getattr(module, "__path__", ())):
                if found.name != "__main__":
                    import_module(f"{name}.{found.name}")
    new = set(sys.modules) - before
    return {name: sys.modules[name] for name in new if name.partition(".")[0] not in _NEVER_HIDDEN}


def _read_at_import(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: environ[name] for name in environ if name.startswith("HF_") and name not in _NO_DIFFERENCE}
