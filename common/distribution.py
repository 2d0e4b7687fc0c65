"""The optional parts of the distribution (`pyproject.toml`), and the command that adds one to this installation."""

import importlib.util
import json
import shlex
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

#: The libraries without which no worker runs.
WORKER_LIBRARIES = ("torch", "transformers", "huggingface_hub")

_NAME = "hugqueue"


def missing_worker_libraries() -> str | None:
    """Return which libraries a worker lacks here and how to install them, None if it can run."""
    lacking = missing_libraries(WORKER_LIBRARIES)
    return f"{', '.join(lacking)}: {install_command('worker')}" if lacking else None


def missing_libraries(libraries: Iterable[str]) -> list[str]:
    """Return those of the libraries that cannot be imported here, without importing any."""
    return [name for name in libraries if importlib.util.find_spec(name) is None]


def install_command(extra: str) -> str:
    """Return the command that adds an extra: `embedded`, `monitor`, `worker`, ...

    It names this Python, and the place hugqueue was installed from: a clone or a wheel is on no index.
    """
    return f"{_pip_install()} {_requirement(extra)}"


def upgrade_command(distribution: str) -> str:
    """Return the command that brings the latest release of a distribution."""
    return f"{_pip_install()} --upgrade {distribution}"


def _pip_install() -> str:
    python = shlex.quote(sys.executable)
    if importlib.util.find_spec("pip") is None:  # uv makes environments without it
        return f"uv pip install --python {python}"
    return f"{python} -m pip install"


def _requirement(extra: str) -> str:
    origin = _direct_url()
    url = origin.get("url", "")
    path = Path(unquote(urlsplit(url).path)) if url.startswith("file:") else None
    if path and path.exists() and origin.get("dir_info", {}).get("editable"):
        return f"--config-settings editable_mode=compat --editable {shlex.quote(f'{path}[{extra}]')}"
    if path and path.exists():
        return shlex.quote(f"{path}[{extra}]")
    if "vcs_info" in origin:
        vcs = origin["vcs_info"]
        return shlex.quote(f"{_NAME}[{extra}] @ {vcs['vcs']}+{url}@{vcs['commit_id']}")
    if url and path is None:
        return shlex.quote(f"{_NAME}[{extra}] @ {url}")
    return shlex.quote(f"{_NAME}[{extra}]")


def _direct_url() -> dict[str, Any]:
    """Return what the installer noted of where hugqueue came from (PEP 610); nothing for a release of an index."""
    try:
        text = Distribution.from_name(_NAME).read_text("direct_url.json")
    except PackageNotFoundError:
        return {}
    found: dict[str, Any] = json.loads(text) if text else {}
    return found


@cache  # the metadata file is read and parsed anew each time
def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, None if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
