"""Environments of their own with hugqueue from its wheel and what it declares, and nothing else."""

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

from tests.support.processes import ROOT, Shell

#: What a wheel is built from.
_SOURCES = ("common", "hugqueue", "producer", "workers", "pyproject.toml", "README.md", "LICENSE")


def build_wheel(directory: Path) -> Path:
    """Build the wheel of this tree, without a network; a copy leaves no `build/` behind."""
    source = directory / "source"
    for name in _SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(directory), str(source))
    [wheel] = directory.glob("*.whl")
    return wheel


class Environment:
    """A virtual environment; its commands are run as a user's shell would, in a directory of their own."""

    def __init__(self, directory: Path, *, with_pip: bool) -> None:
        self.directory = directory
        options = [] if with_pip else ["--without-pip"]
        subprocess.run([sys.executable, "-m", "venv", *options, directory], check=True, timeout=120)
        self.packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(directory)}))

    def link(self, wheel: Path, extras: tuple[str, ...]) -> "Environment":
        """Install the wheel, and link to this Python's own copies of what it declares: no network is needed."""
        self._pip("install", "--no-deps", "--no-index", str(wheel))
        [metadata] = self.packages.glob("hugqueue-*.dist-info")
        for found in _declared(Distribution.at(metadata), extras):
            for entry in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
                if not (self.packages / entry).exists():
                    (self.packages / entry).symlink_to(Path(str(found.locate_file(entry))))
        return self

    def install(self, wheel: Path, extras: tuple[str, ...]) -> "Environment":
        """Install the wheel and what it declares from the index."""
        self._pip(
            "install",
            "--constraint",
            str(ROOT / "constraints.txt"),
            f"{wheel}[{','.join(extras)}]" if extras else str(wheel),
        )
        return self

    def _pip(self, *arguments: str) -> None:
        _pip("--python", str(self.directory / "bin" / "python"), *arguments)

    def run(self, shell: Shell, *command: str, status: int = 0) -> "subprocess.CompletedProcess[str]":
        """Run a command of this environment with the variables and in the directory of `shell`."""
        done = subprocess.run(
            [str(self.directory / "bin" / command[0]), *command[1:]],
            env=self.environ(shell),
            cwd=shell.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr[-3000:]
        assert done.returncode == status, f"{done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return done

    def environ(self, shell: Shell) -> dict[str, str]:
        """The variables of `shell`, with this environment's commands first, and without the runners of the tests."""
        path = os.pathsep.join([str(self.directory / "bin"), os.environ["PATH"]])
        return {key: value for key, value in shell.environ.items() if key != "PYTHONPATH"} | {"PATH": path}


def _pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments],
        # Not the tree's own metadata, which would satisfy pip.
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _declared(ours: Distribution, extras: tuple[str, ...]) -> list[Distribution]:
    """Return the distributions that ours with these extras asks for, and those that they ask for in turn."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, tuple[str, ...]]] = set()
    waiting = list(_needs(ours, extras))
    while waiting:
        need = waiting.pop()
        wanted = tuple(sorted(need.extras))
        if (need.name, wanted) in seen:
            continue
        seen.add((need.name, wanted))
        with contextlib.suppress(PackageNotFoundError):  # torch as built for a CPU asks for no CUDA
            found[need.name] = distribution(need.name)
            waiting += _needs(found[need.name], wanted)
    return list(found.values())


def _needs(one: Distribution, extras: tuple[str, ...]) -> Iterator[Requirement]:
    for text in one.requires or ():
        need = Requirement(text)
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield need
