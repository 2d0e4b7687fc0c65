"""Errors of files while a model is found or loaded: they are answered, and never taken for the end of the channel."""

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import CodedError
from tests.support.device_process import RunningDevice, outcomes, running_device
from tests.support.processes import ROOT
from tests.support.tiny_models import masked_bert
from workers.training.trainer.control_socket import ORPHANED

TOO_LONG = "/" + "a" * 300


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningDevice]:
    with running_device(monkeypatch, any_path=True, batch_timeout=5.0) as started:
        yield started


def refused(device: RunningDevice, model: str) -> str:
    with pytest.raises(CodedError) as caught:
        device.run("fill-mask", ["the [MASK]"], model=model)
    return caught.value.code


def test_a_path_that_the_system_refuses_fails_its_job_alone(device: RunningDevice):
    before = device.pid()
    assert refused(device, TOO_LONG) == "model_unreadable"
    assert refused(device, f"{TOO_LONG}/b") == "model_unreadable"
    assert outcomes(device.run("test-echo", ["a"]))[0].output == "A"
    assert device.pid() == before


def test_files_that_cannot_be_read_fail_their_job_alone(device: RunningDevice, tmp_path: Path):
    before, model = device.pid(), masked_bert(tmp_path / "model")
    for number, name in enumerate(("config.json", "model.safetensors", "tokenizer.json")):
        broken = Path(shutil.copytree(model, tmp_path / f"directory-{number}"))
        (broken / name).unlink()
        (broken / name).mkdir()
        assert refused(device, str(broken)) in ("not_a_model", "no_tokenizer", "model_load_failed")
        looping = Path(shutil.copytree(model, tmp_path / f"loop-{number}"))
        (looping / name).unlink()
        (looping / name).symlink_to(name)
        assert refused(device, str(looping)) in ("not_a_model", "no_tokenizer", "model_load_failed", "device_fault")
    assert outcomes(device.run("test-echo", ["a"]))[0].output == "A"
    assert device.pid() == before


def test_a_preload_that_the_system_refuses_ends_with_the_reason(monkeypatch: pytest.MonkeyPatch):
    with (
        pytest.raises(CodedError) as caught,
        running_device(monkeypatch, any_path=True, preload=(f"fill-mask={TOO_LONG}",)),
    ):
        pass
    assert caught.value.code == "model_unreadable"


def test_a_training_process_whose_worker_is_gone_ends_by_that_status(tmp_path: Path):
    address = str(tmp_path / "s")
    script = (
        "import sys, time; from workers.training.trainer.control_socket import ControlSocket\n"
        "control = ControlSocket(sys.argv[1], 0)\n"
        "while True: control.send('step', step=1)"
    )
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(1)
        process = subprocess.Popen([sys.executable, "-c", script, address], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        connection, _ = listener.accept()
        connection.recv(100)
        connection.close()
        _, said = process.communicate(timeout=30)
    assert process.returncode == ORPHANED
    assert "Error" not in said
