"""Paths that the system refuses are told in one sentence, wherever a user names one."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import UsageError
from common.inputs.sources import ReadProgress
from common.models.references import find_model
from common.settings import load_settings
from common.storage.atomic import AtomicFile
from producer.outputs.targets import OutputFile, check_target, parse_target
from tests.support.processes import Shell, environment

LONG = "x" * 300


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """`producer` with no Redis configured."""
    (tmp_path / "in.txt").write_text("a [MASK]\n")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    return Shell(environment(tmp_path), tmp_path)


SUBMIT = ("submit", "--task", "fill-mask", "in.txt")
UNKNOWN_USER = "~nobody-of-that-name/x"
REFUSED = [
    ((*SUBMIT, "-m", f"./{LONG}"), {}),
    ((*SUBMIT, "-m", f"{LONG}/x"), {}),
    ((*SUBMIT, "-m", UNKNOWN_USER), {}),
    ((*SUBMIT, "-o", f"{LONG}.jsonl"), {}),
    ((*SUBMIT, "-o", f"{LONG}/"), {}),
    ((*SUBMIT, "-o", "loop.jsonl"), {}),
    ((*SUBMIT, "-o", f"{UNKNOWN_USER}/"), {}),
    ((*SUBMIT, "--store", f"{UNKNOWN_USER}/"), {}),
    (("submit", "--task", "image-classification", f"{LONG}.png"), {}),
    (("submit", "--task", "image-classification", f"{LONG}/*.png"), {}),
    (("models", "export", "job:0123456789ab", f"{LONG}/x"), {}),
    (("models", "export", "job:0123456789ab", LONG), {}),
    (("up", "--no-flower", "--preload", f"fill-mask=./{LONG}"), {}),
    (("models",), {"HUGQUEUE_MODELS_URL": f"/tmp/{LONG}"}),
    (("models",), {"HUGQUEUE_MODELS_URL": UNKNOWN_USER}),
    (("jobs",), {"HUGQUEUE_HOME": UNKNOWN_USER}),
    (("jobs",), {"HUGQUEUE_HOME": f"/tmp/{LONG}"}),
    (("jobs",), {"HUGQUEUE_SHARED": UNKNOWN_USER}),
    (("jobs",), {"REDIS_URL": f"rediss://localhost/?ssl_ca_certs=/{LONG}"}),
    (("jobs",), {"REDIS_URL": f"redis://{'h' * 64}.example/0"}),
    (("jobs",), {"REDIS_URL": "redis://a..example/0"}),
]


@pytest.mark.parametrize(("arguments", "more"), REFUSED, ids=map(str, range(len(REFUSED))))
def test_what_the_system_refuses_is_reported_in_one_sentence(
    shell: Shell, arguments: tuple[str, ...], more: dict[str, str]
) -> None:
    shell.environ |= more
    done = shell.run(*arguments, status=None)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1, done.stderr[-500:]


@pytest.mark.parametrize(
    "step",
    [
        lambda: find_model(f"./{LONG}"),
        lambda: parse_target(f"{LONG}", None),
        lambda: check_target(OutputFile(Path(f"{LONG}.csv")), None),
        lambda: load_settings({"HUGQUEUE_HOME": UNKNOWN_USER, "HOME": "/"}),
    ],
)
def test_programs_get_an_error_of_ours(step: Callable[[], object]) -> None:
    with pytest.raises(UsageError, match=r"File name too long|home directory"):
        step()


def test_the_size_of_what_cannot_be_looked_at_is_not_known() -> None:
    assert ReadProgress.of([LONG, "-", "s3://bucket/x"]).size == 0


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666, 0o440])
def test_a_replaced_file_keeps_its_mode_its_owner_and_its_link(tmp_path: Path, mode: int) -> None:
    real, link = tmp_path / "real.jsonl", tmp_path / "link.jsonl"
    real.write_text("old")
    if os.geteuid() == 0:
        os.chown(real, 12345, 12345)
    real.chmod(mode)
    before = real.stat()
    link.symlink_to("real.jsonl")
    aside = AtomicFile(link)
    aside.stream.write(b"new")
    aside.commit()
    after = real.stat()
    assert link.is_symlink() and real.read_text() == "new"
    assert stat.S_IMODE(after.st_mode) == mode
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
