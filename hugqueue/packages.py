"""That the packages of hugqueue are its own: `common`, `producer` and `workers` are names that programs use too.

A directory `common/` beside a program, in the working directory of Celery or on PYTHONPATH is found before ours.
"""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

_OURS = Path(__file__).resolve().parents[1]


def require_own(*names: str) -> None:
    """Make sure that the packages of these names are ours.

    Raises:
        ImportError: another package stands in for one of them.
    """
    for name in names:
        found = _place_of(name)
        if found != _OURS / name and _celery_put_first(found):
            sys.path.pop(0)
            found = _place_of(name)
        if found not in (None, _OURS / name):
            raise ImportError(
                f"hugqueue needs its own package {name!r}, and Python finds another one first: {found}. "
                f"Rename that one, or keep its directory off the path of this program."
            )


def _place_of(name: str) -> Path | None:
    spec: ModuleSpec | None = find_spec(name)
    if spec is None:
        return None
    if spec.submodule_search_locations:  # a package, also one without an __init__.py
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin or "").resolve()


def _celery_put_first(found: Path | None) -> bool:
    """Return whether the package was found in the working directory, which `celery -A` puts before all others."""
    if found is None or "celery.bin.celery" not in sys.modules:
        return False
    return found.parent == Path(sys.path[0]).resolve() == Path.cwd()
