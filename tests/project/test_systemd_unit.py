"""`deploy/systemd`: the unit is valid, its times fit, and its settings exist."""

import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from common.settings import Settings
from tests.support.processes import ROOT

UNIT = ROOT / "deploy" / "systemd" / "hugqueue-worker@.service"


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (Debian: the package systemd)")
    program = Path(sys.executable).with_name("workers")
    text = UNIT.read_text().replace("/opt/hugqueue/bin/workers", str(program))
    text = re.sub(r"/usr/bin/nvidia-\w+", shutil.which("true") or "/bin/true", text)
    assert str(program) in text
    (tmp_path / "hugqueue-worker@cpu.service").write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "hugqueue-worker@cpu.service")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_a_worker_has_the_time_to_stop_that_its_grace_needs() -> None:
    [seconds] = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT.read_text(), re.MULTILINE)
    assert int(seconds) == Settings().supervisor_stop_seconds


def test_nothing_hides_the_device_files_of_a_gpu() -> None:
    settings = dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE))
    assert not settings.keys() & {
        "PrivateDevices",
        "ProtectClock",
        "DevicePolicy",
        "DeviceAllow",
        "MemoryDenyWriteExecute",
    }


def test_a_process_that_runs_models_may_run_out_of_memory_alone() -> None:
    assert "\nOOMPolicy=continue\n" in UNIT.read_text()


def test_others_of_the_group_can_read_outcomes_in_a_shared_directory() -> None:
    [mask] = re.findall(r"^UMask=(\d+)$", UNIT.read_text(), re.MULTILINE)
    assert not int(mask, 8) & 0o050


def test_every_setting_of_the_example_exists() -> None:
    known = {name for setting in fields(Settings) for name in re.findall(r"[A-Z][A-Z_]+", setting.metadata["env"])}
    named = set(re.findall(r"^#?([A-Z][A-Z_]+)=", UNIT.with_name("worker.env").read_text(), re.MULTILINE))
    assert named - known == {"WORKER_OPTIONS", "HF_TOKEN"}
    assert "$WORKER_OPTIONS" in UNIT.read_text()
