"""Fixtures of the tests of inference."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a tiny model by the name of its function in `tiny_models`, made when a test first requests it."""
    from tests.support import tiny_models

    base = tmp_path_factory.mktemp("models")

    def model(name: str) -> Path:
        return base / name if (base / name).exists() else getattr(tiny_models, name)(base / name)

    return model
