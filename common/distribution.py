"""Installed distributions: versions, missing libraries, and the command that installs an extra of hugqueue."""

import importlib.util
import json
import shlex
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

#: The libraries that a worker needs.
WORKER_LIBRARIES = ("torch", "transformers", "huggingface_hub")

_NAME = "hugqueue"


@cache  # reading the metadata parses a whole file each time
def installed_version(distribution: str) -> str | None:
    """Return the version of a distribution, None if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version  # it loads the email package

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def missing_worker_libraries() -> str | None:
    """Return the missing worker libraries and how to install them, None if there are none."""
    lacking = missing_libraries(WORKER_LIBRARIES)
    return f"{', '.join(lacking)}: {install_command('worker')}" if lacking else None


def missing_libraries(libraries: Iterable[str]) -> list[str]:
    """Return the libraries that are not installed, without importing any."""
    return [name for name in libraries if importlib.util.find_spec(name) is None]


def install_command(extra: str) -> str:
    """Return the command that installs an extra: `embedded`, `monitor`, `worker`, ...

    It names this Python and the origin of the installation, because a clone or a local wheel is on no index.
    """
    return f"{_pip_install()} {_requirement(extra)}"


def upgrade_command(distribution: str) -> str:
    """Return the command that upgrades a distribution."""
    return f"{_pip_install()} --upgrade {distribution}"


def _pip_install() -> str:
    python = shlex.quote(sys.executable)
    if importlib.util.find_spec("pip") is None:  # environments made by uv have no pip
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
    """Return where hugqueue was installed from (PEP 610); empty for a release from an index."""
    from importlib.metadata import Distribution, PackageNotFoundError

    try:
        text = Distribution.from_name(_NAME).read_text("direct_url.json")
    except PackageNotFoundError:
        return {}
    found: dict[str, Any] = json.loads(text) if text else {}
    return found
