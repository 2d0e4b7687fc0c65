"""The side that submits: the command line, readers of inputs, writers of outcomes, the embedded Redis.

For programs: `from producer import Client` (docs/python.md).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from producer.client import Client
    from producer.handle import JobHandle

__all__ = ["Client", "JobHandle"]

#: Name -> its module, imported when it is asked for: `producer --help` is to stay quick.
_MODULES = {"Client": "producer.client", "JobHandle": "producer.handle"}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
