"""Import check: `common`, `producer` and `workers` are hugqueue's packages, not those of the user's program.

Python finds a `common/` beside a program, in Celery's working directory or on PYTHONPATH before hugqueue's.
"""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

_OURS = Path(__file__).resolve().parents[1]


def require_own(*names: str) -> None:
    """Check that the packages of these names are hugqueue's.

    Raises:
        ImportError: Python finds another package instead.
    """
    for name in names:
        found = _location_of(name)
        if found != _OURS / name and _celery_put_first(found):
            sys.path.pop(0)
            found = _location_of(name)
        if found not in (None, _OURS / name):
            raise ImportError(
                f"hugqueue needs its own package {name!r}, and Python finds another one first: {found}. "
                f"Rename that one, or remove its directory from this program's path."
            )


def _location_of(name: str) -> Path | None:
    spec: ModuleSpec | None = find_spec(name)
    if spec is None:
        return None
    if spec.submodule_search_locations:  # a package, also one without an __init__.py
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin or "").resolve()


def _celery_put_first(found: Path | None) -> bool:
    """Whether the package was found in the working directory, which `celery -A` puts first on the path."""
    if found is None or "celery.bin.celery" not in sys.modules:
        return False
    return found.parent == Path(sys.path[0]).resolve() == Path.cwd()
