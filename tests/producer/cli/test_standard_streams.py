"""What a command does with a standard stream that takes nothing, and with a locale that cannot write a name."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT, RedisServer, Shell, environment


@pytest.fixture
def shell(server: RedisServer, tmp_path: Path) -> Shell:
    (tmp_path / "in.txt").write_text("a [MASK]\n")
    return Shell(environment(tmp_path, server.url), tmp_path)


def sh(shell: Shell, line: str) -> "subprocess.CompletedProcess[str]":
    """Run a line of `sh` in which `producer` and `workers` are the programs."""
    words = "".join(f'{name}() {{ "{sys.executable}" -P -m {name}.cli "$@"; }}; ' for name in ("producer", "workers"))
    environ = shell.environ | {"PYTHONPATH": f"{ROOT}:{shell.environ['PYTHONPATH']}"}
    return subprocess.run(
        ["sh", "-c", words + line],
        env=environ,
        cwd=shell.directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


ANSWERS = [
    "producer tasks",
    "producer jobs --json",
    "producer submit --help",
    "producer submit --task fill-mask in.txt --dry-run",
    "workers start --help",
]


@pytest.mark.parametrize("command", ANSWERS)
@pytest.mark.parametrize(
    ("end", "reason"),
    [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")],
    ids=["full", "closed"],
)
def test_a_response_that_cannot_be_written_is_reported(shell: Shell, command: str, end: str, reason: str) -> None:
    done = sh(shell, f"{command} {end}")
    assert done.stderr == f"Error: Cannot write to standard output: {reason}.\n"
    assert done.returncode == 1


@pytest.mark.parametrize("end", ["2>/dev/full", "2>&-"])
def test_without_stderr_the_answer_and_the_status_stay(shell: Shell, end: str) -> None:
    assert "fill-mask" in sh(shell, f"producer tasks {end}").stdout
    assert sh(shell, f"producer submit --task no-such-task in.txt {end}").returncode == 2
    assert sh(shell, f"REDIS_URL= workers start {end}").returncode == 2


def test_a_closed_stdout_does_not_matter_when_a_file_is_written(shell: Shell) -> None:
    submit = "producer submit --task fill-mask in.txt"
    assert sh(shell, f"{submit} >&-").returncode == 1  # the job's id was the answer
    done = sh(shell, "producer delete --force $(producer jobs --json | grep -o '[0-9a-f]\\{12\\}' | head -1) >&-")
    assert done.returncode == 0, done.stderr


def test_a_locale_without_a_name_s_letters_shows_escapes(shell: Shell) -> None:
    job = shell.submit("--task", "fill-mask", "in.txt", "--name", "한국")
    shell.environ["PYTHONIOENCODING"] = "latin-1"  # as a locale such as de_DE.ISO-8859-1 makes it
    for command in (["jobs"], ["status", job]):
        assert "\\ud55c\\uad6d" in shell.run(*command).stdout
    assert '"name": "한국"' in shell.run("jobs", "--json").stdout
