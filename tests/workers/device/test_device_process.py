"""The device process in good health: what it gives, preloads, gives up, and what it is kept from."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from common.errors import Cancelled, ModelError, PayloadError, WorkerError
from common.payloads.codec import decode_outcomes, encode_records, iter_outcomes
from common.records import Counts, Failure, Outcome, Record
from common.reporting import CancelToken
from tests.support.device_process import RunningDevice, codes, gone, outcomes, running_device
from tests.support.processes import PLUGINS, ROOT, wait_until


def test_outcomes_come_back_in_order_with_ids_counts_and_facts(device: RunningDevice):
    result = device.run("test-echo", ["a", "b", "c", "d", "e"], params={"fail": "c"})
    rows = list(iter_outcomes(decode_outcomes(result.payload)))
    assert [(position, id_, outcome.output) for position, id_, outcome in rows] == [
        (0, "r0", "A"),
        (1, "r1", "B"),
        (2, "r2", None),
        (3, "r3", "D"),
        (4, "r4", "E"),
    ]
    assert codes(result) == {2: "test_failure"}
    assert result.counts == Counts(succeeded=4, failed=1)
    assert (result.run_info["task"], result.run_info["device"]) == ("test-echo", "cpu")


def test_only_the_wanted_positions_run(device: RunningDevice):
    result = device.run("test-echo", ["a", "b", "c"], positions=[2, 0])
    assert [(at, o.output) for at, o in outcomes(result).items()] == [(2, "C"), (0, "A")]


def test_a_record_that_could_not_be_read_is_not_run(device: RunningDevice):
    broken = Record("r1", None, Failure("bad_json", "why"))
    result = device.run("test-echo", ["a", broken])
    assert outcomes(result) == {0: Outcome("A"), 1: Outcome(failure=Failure("bad_json", "why"))}


def test_outputs_keep_the_type_that_the_runner_declares(device: RunningDevice):
    table = decode_outcomes(device.run("test-vector", ["ab", "abc"]).payload)
    assert str(table.schema.field("output").type).startswith("fixed_size_list<")
    assert table["output"].to_pylist() == [[1.0, 2.0, 2.0], [1.0, 2.0, 3.0]]


def test_an_empty_chunk_has_an_empty_answer(device: RunningDevice):
    assert device.run("test-echo", []).counts == Counts()
    assert device.run("test-echo", [], isolated=True).counts == Counts()


def test_loading_is_said_and_its_end_too(device: RunningDevice):
    device.run("test-load", ["a"])
    device.run("test-load", ["a"])
    assert device.stages == ["loading test-load", ""]


def test_three_chunks_at_once_are_all_answered(device: RunningDevice):
    futures = [device.submit("test-wait", [f"text {n}"], params={"seconds": 0.1}) for n in range(6)]
    assert [outcomes(f.result(30))[0].output for f in futures] == [f"TEXT {n}" for n in range(6)]


def test_an_unknown_task_fails_the_job(device: RunningDevice):
    with pytest.raises(ModelError, match="test-nothing") as caught:
        device.run("test-nothing", ["a"])
    assert caught.value.code == "unknown_task"


def test_a_model_that_cannot_be_loaded_fails_the_job_with_its_reason(device: RunningDevice):
    with pytest.raises(ModelError, match="no head"):
        device.run("test-load", ["a"], params={"load_error": "no head"})
    with pytest.raises(ModelError, match="ValueError: odd") as caught:
        device.run("test-load", ["a"], params={"load_raise": "odd"})
    assert caught.value.code == "model_load_failed"
    assert device.run("test-echo", ["a"]).counts.succeeded == 1


@pytest.mark.parametrize("payload", [b"", b"garbage", encode_records([Record(0, "a")])[:-40]])
def test_bytes_that_are_not_a_payload_are_refused(device: RunningDevice, payload: bytes):
    pid = device.pid()
    with pytest.raises(PayloadError):
        device.run("test-echo", [], payload=payload)
    assert device.pid() == pid


def test_a_running_chunk_is_cancelled_between_two_heartbeats(device: RunningDevice, tmp_path: Path):
    cancelled, started = CancelToken(), tmp_path / "started"
    running = device.submit("test-wait", ["a"], params={"seconds": 600, "started": str(started)}, cancelled=cancelled)
    wait_until(started.exists)
    pid = device.pid()
    cancelled.cancel()
    with pytest.raises(Cancelled):
        running.result(5)
    assert device.run("test-echo", ["a"]).counts.succeeded == 1
    assert device.pid() == pid


def test_a_waiting_chunk_is_cancelled_at_once(device: RunningDevice, tmp_path: Path):
    cancelled, started, until = CancelToken(), tmp_path / "started", tmp_path / "until"
    running = device.submit("test-wait", ["a"], params={"until": str(until), "started": str(started)})
    wait_until(started.exists)
    waiting = device.submit("test-echo", ["b"], cancelled=cancelled)
    cancelled.cancel()
    with pytest.raises(Cancelled):
        waiting.result(5)
    assert not running.done()
    until.touch()
    assert running.result(10).counts.succeeded == 1


def test_loading_can_be_abandoned_without_waiting_for_its_end(device: RunningDevice):
    cancelled = CancelToken()
    loading = device.submit("test-load", ["a"], params={"load_seconds": 3}, cancelled=cancelled)
    wait_until(lambda: "loading test-load" in device.stages)
    cancelled.cancel()
    begun = time.monotonic()
    with pytest.raises(Cancelled):
        loading.result(5)
    assert time.monotonic() - begun < 2


def test_preloads_are_loaded_and_warm_before_start_returns(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    with running_device(monkeypatch, preload=("test-echo",)) as device:
        assert [(m["task"], m["model"]) for m in device.process.status.models] == [("test-echo", None)]
        assert (device.process.status.free or 0) > 0
        device.run("test-echo", ["a"])
        assert device.stages == []
    assert "test-echo with no model: loaded and warm in" in capfd.readouterr().err


def test_a_preload_that_cannot_be_had_is_an_error_of_start(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ModelError, match="no default model"), running_device(monkeypatch, preload=("test-model",)):
        pass


def test_a_preload_that_does_not_fit_is_an_error_of_the_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(1 << 43)  # a sparse file: eight terabytes that take no room
    with (
        pytest.raises(WorkerError, match="does not fit") as caught,
        running_device(monkeypatch, preload=(f"test-model={tmp_path}",)),
    ):
        pass
    assert caught.value.code == "no_memory"


def test_stop_ends_the_process_and_cancels_the_running_chunk(device: RunningDevice, tmp_path: Path):
    started = tmp_path / "started"
    running = device.submit("test-wait", ["a"], params={"seconds": 600, "started": str(started)})
    wait_until(started.exists)
    pid = device.pid()
    device.process.stop()
    with pytest.raises(Cancelled):
        running.result(5)
    assert gone(pid)


def test_signals_for_the_whole_group_do_not_end_it(device: RunningDevice):
    pid = device.pid()
    assert os.getsid(pid) == pid
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    assert device.run("test-echo", ["a"]).counts.succeeded == 1
    assert device.pid() == pid


def test_it_has_neither_celery_nor_redis_nor_torch_nor_the_password(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("REDIS_URL", "redis://:secret@localhost/0")
    with running_device(monkeypatch) as device:
        device.run("test-echo", ["a"])
        process = psutil.Process(device.pid())
        assert "secret" not in str(process.environ())
        mapped = " ".join(entry.path for entry in process.memory_maps())
        assert "libtorch" not in mapped
    code = (
        "import sys, workers.device.server.server as _; "
        "print([m for m in ('celery','redis','torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_model_that_is_refused_costs_no_import_of_torch(device: RunningDevice):
    with pytest.raises(ModelError, match="does not open"):
        device.run("embedding", ["a"], model="/somewhere/else")
    assert "libtorch" not in " ".join(entry.path for entry in psutil.Process(device.pid()).memory_maps())


def test_it_ends_with_its_parent_even_when_it_is_stuck(tmp_path: Path):
    code = (
        "import sys, threading; sys.path.insert(0, sys.argv[1]);"
        "from common.settings import Settings; from workers.device.client.device_client import DeviceClient;"
        "process = DeviceClient(Settings(device='cpu')); process.start(); print(process.pid, flush=True);"
        "threading.Event().wait()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(ROOT)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(PLUGINS)},
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    os.kill(pid, signal.SIGSTOP)  # it cannot read the end of its socket now
    parent.kill()
    parent.wait()
    wait_until(lambda: gone(pid), 10, "the device process has ended")
