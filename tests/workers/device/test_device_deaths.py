"""The device process dies, hangs, or loses its device: what that costs, and what it must not cost."""

import os
import resource
import signal
from pathlib import Path

import pyarrow as pa
import pytest

from common.errors import Cancelled, CodedError, ModelError, WorkerError
from common.jobs import JobSpec, new_job_id
from common.payloads.codec import decode_outcomes, encode_records
from common.records import Counts, Failure, Json, Record
from common.reporting import CancelToken
from tests.support.device_process import RunningDevice, StageList, codes, outcomes, running_device
from tests.support.processes import wait_until
from workers.device.client.device_client import IsolationPolicy

TEXTS = ["a", "b", "c", "d", "e", "f"]


@pytest.mark.parametrize(
    ("text", "words"), [("crash", "SIGSEGV"), ("oom-kill", "SIGKILL"), ("exit", "status 3"), ("gpu-lost", "GPU")]
)
def test_a_record_that_kills_the_process_fails_alone(device: RunningDevice, text: str, words: str):
    result = device.run("test-crash", [*TEXTS, text, "g", "h"])
    assert codes(result) == {6: "worker_died"}
    assert words in (outcomes(result)[6].failure or pytest.fail()).message
    assert [outcome.output for outcome in outcomes(result).values()] == [*"ABCDEF", None, "G", "H"]
    assert result.counts == Counts(succeeded=8, failed=1)


def test_several_killers_fail_and_no_other(device: RunningDevice):
    result = device.run("test-crash", ["crash", *TEXTS, "oom-kill", "g"], params={"batch": 2})
    assert codes(result) == {0: "worker_died", 7: "worker_died"}


def test_a_chunk_of_killers_alone_keeps_the_type_of_its_outputs(device: RunningDevice):
    healthy = decode_outcomes(device.run("test-vector", ["a"]).payload).schema
    result = device.run("test-vector", ["crash"])
    assert codes(result) == {0: "worker_died"}
    assert decode_outcomes(result.payload).schema.equals(healthy)


def test_a_chunk_of_excluded_records_keeps_the_type_of_its_outputs(device: RunningDevice):
    healthy = decode_outcomes(device.run("test-vector", ["a"]).payload).schema
    excluded = IsolationPolicy({0: Failure("worker_died", "before")}, lambda _: None)
    spec, records = JobSpec(new_job_id(), "test-vector"), encode_records([Record("r0", "a")])
    result = device.process.run(
        spec, records, None, cancel_token=CancelToken(), reporter=StageList([]), isolation=excluded
    )
    assert codes(result) == {0: "worker_died"} and result.run_info
    assert decode_outcomes(result.payload).schema.equals(healthy)


def test_failures_have_the_declared_type_although_no_model_was_loaded(device: RunningDevice):
    excluded = IsolationPolicy({0: Failure("worker_died", "before")}, lambda _: None)
    spec = JobSpec(new_job_id(), "sentiment-analysis", "/there/is/no/such/model")
    result = device.process.run(
        spec,
        encode_records([Record("r0", "a")]),
        None,
        cancel_token=CancelToken(),
        reporter=StageList([]),
        isolation=excluded,
    )
    assert codes(result) == {0: "worker_died"}
    found = decode_outcomes(result.payload).schema.field("output").type
    assert found == pa.struct({"label": pa.string(), "score": pa.float64()})


def test_a_result_in_parts_keeps_the_type_of_its_outputs(device: RunningDevice):
    result = device.run("test-vector", ["a", "bb", "crash"], params={"batch": 1})
    assert codes(result) == {2: "worker_died"}
    assert decode_outcomes(result.payload)["output"].to_pylist() == [[1.0, 2.0, 1.0], [1.0, 2.0, 2.0], None]


def test_a_death_that_was_not_the_records_fault_costs_nothing(device: RunningDevice, tmp_path: Path):
    result = device.run("test-crash", ["a", f"once:{tmp_path / 'flag'}", "c"])
    assert result.counts == Counts(succeeded=3)


def test_only_wanted_positions_are_run_again_after_a_death(device: RunningDevice):
    result = device.run("test-crash", ["crash", "b", "crash", "d"], positions=[1, 2, 3])
    assert {at: outcome.output for at, outcome in outcomes(result).items()} == {1: "B", 2: None, 3: "D"}


def test_run_with_caution_each_record_is_a_batch_of_its_own(device: RunningDevice):
    result = device.run("test-crash", ["a", "crash", "c"], isolated=True)
    assert codes(result) == {1: "worker_died"}
    assert [o.output for o in outcomes(result).values()] == ["A", None, "C"]


def test_chunks_that_waited_are_answered_as_if_nothing_had_been(device: RunningDevice, tmp_path: Path):
    started, until = tmp_path / "started", tmp_path / "until"
    running = device.submit("test-wait", ["a"], params={"until": str(until), "started": str(started)})
    wait_until(started.exists)
    waiting = [device.submit("test-echo", [f"text {n}"]) for n in range(2)]
    os.kill(device.pid(), signal.SIGKILL)
    until.touch()
    assert [outcomes(f.result(30))[0].output for f in [running, *waiting]] == ["A", "TEXT 0", "TEXT 1"]


def test_a_process_that_dies_idle_is_replaced(device: RunningDevice):
    pid = device.pid()
    os.kill(pid, signal.SIGKILL)
    assert device.run("test-echo", ["a"]).counts.succeeded == 1
    assert device.pid() != pid


def test_a_record_that_hangs_fails_alone_with_timeout(monkeypatch: pytest.MonkeyPatch):
    with running_device(monkeypatch, batch_timeout=2.0) as device:
        result = device.run("test-crash", ["a", "b", "hang", "d"])
        assert codes(result) == {2: "timeout"}
        assert result.counts == Counts(succeeded=3, failed=1)


def test_a_record_that_hangs_before_the_first_batch_fails_alone(monkeypatch: pytest.MonkeyPatch):
    with running_device(monkeypatch, batch_timeout=2.0) as device:
        assert codes(device.run("test-crash", ["a", "hang-early", "c"])) == {1: "timeout"}


def test_a_long_batch_that_sends_heartbeats_is_not_killed(monkeypatch: pytest.MonkeyPatch):
    with running_device(monkeypatch, batch_timeout=2.0) as device:
        pid = device.pid()
        assert device.run("test-wait", ["a"], params={"seconds": 3}).counts.succeeded == 1
        assert device.pid() == pid


def test_slow_loading_is_not_a_hang(monkeypatch: pytest.MonkeyPatch):
    with running_device(monkeypatch, batch_timeout=2.0) as device:
        assert device.run("test-load", ["a"], params={"load_seconds": 3}).counts.succeeded == 1


def test_a_load_that_gets_no_further_is_ended_and_left_to_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with running_device(monkeypatch, load_timeout=1.0) as device:
        pid = device.pid()
        params: dict[str, Json] = {"load_seconds": 600, "load_log": str(tmp_path / "log")}
        spec = JobSpec(new_job_id(), "test-load", params=params)
        for waiting in [device.submit("test-load", [f"text {n}"], spec=spec) for n in range(3)]:
            with pytest.raises(WorkerError, match="HUGQUEUE_LOAD_TIMEOUT") as caught:
                waiting.result(30)
            assert caught.value.code == "load_timeout"
        assert device.run("test-echo", ["a"]).counts.succeeded == 1
        assert device.pid() != pid
        assert (tmp_path / "log").read_text().count("loaded") == 1


def test_a_slow_load_that_makes_progress_is_not_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with running_device(monkeypatch, load_timeout=1.0) as device:
        pid = device.pid()
        params: dict[str, Json] = {"load_seconds": 3, "load_write": str(tmp_path / "data")}
        assert device.run("test-load", ["a"], params=params).counts.succeeded == 1
        assert device.pid() == pid


def test_a_loader_that_is_frozen_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with running_device(monkeypatch, load_timeout=1.0) as device:
        params: dict[str, Json] = {"load_seconds": 600, "load_write": str(tmp_path / "data")}
        loading = device.submit("test-load", ["a"], params=params)
        wait_until((tmp_path / "data").exists)
        os.kill(device.pid(), signal.SIGSTOP)
        with pytest.raises(WorkerError) as caught:
            loading.result(30)
        assert caught.value.code == "load_timeout"


@pytest.mark.parametrize("frozen", [False, True])
def test_a_load_that_nobody_waits_for_any_longer_is_ended(
    device: RunningDevice, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, frozen: bool
):
    monkeypatch.setattr("workers.device.client.process._UNWANTED_SECONDS", 1.0)
    stuck, cancelled = tmp_path / "stuck", CancelToken()
    stuck.touch()
    loading = device.submit("test-load", ["a"], params={"load_stuck": str(stuck)}, cancelled=cancelled)
    wait_until(lambda: "loading test-load" in device.stages)
    if frozen:
        os.kill(device.pid(), signal.SIGSTOP)
    waiting = device.submit("test-echo", ["b"])
    cancelled.cancel()
    with pytest.raises(Cancelled):
        loading.result(10)
    assert waiting.result(30).counts.succeeded == 1


def test_a_death_right_after_a_slow_load_recovers_without_a_spiral(device: RunningDevice):
    result = device.run("test-load", ["a", "crash", "c"], params={"load_seconds": 1, "batch": 1})
    assert codes(result) == {1: "worker_died"}
    assert device.stages.count("loading test-load") <= 4


@pytest.mark.parametrize(
    ("how", "words", "error", "code"),
    [
        ("load_crash", "SIGSEGV", ModelError, "model_kills_worker"),
        ("load_kill", "SIGKILL", WorkerError, "no_memory"),  # as the kernel does it: a larger worker may load it
    ],
)
def test_a_model_whose_loading_kills_twice_is_not_loaded_again(
    device: RunningDevice, tmp_path: Path, how: str, words: str, error: type[CodedError], code: str
):
    fatal = tmp_path / "fatal"
    fatal.touch()
    with pytest.raises(error, match=words) as caught:
        device.run("test-load", ["a"], params={how: str(fatal)})
    assert caught.value.code == code
    assert device.run("test-echo", ["a"]).counts.succeeded == 1
    fatal.unlink()  # another job may try it again
    assert device.run("test-load", ["a"], params={how: str(fatal)}).counts.succeeded == 1


def test_all_chunks_that_wait_for_a_model_hear_that_its_loading_kills(device: RunningDevice, tmp_path: Path):
    fatal, log = tmp_path / "fatal", tmp_path / "log"
    fatal.touch()
    params: dict[str, Json] = {"load_seconds": 1, "load_crash": str(fatal), "load_log": str(log)}
    spec = JobSpec(new_job_id(), "test-load", params=params)
    for waiting in [device.submit("test-load", [f"text {n}"], spec=spec) for n in range(3)]:
        with pytest.raises(ModelError, match="SIGSEGV"):
            waiting.result(30)
    assert log.read_text().count("loaded") == 2


def test_a_preload_that_is_killed_twice_is_an_error_of_start(monkeypatch: pytest.MonkeyPatch):
    preload = ("test-suicide",)
    with pytest.raises(WorkerError, match="test-suicide") as caught, running_device(monkeypatch, preload=preload):
        pass
    assert caught.value.code == "no_memory"


def test_a_process_that_keeps_dying_while_idle_is_not_restarted(device: RunningDevice):
    for _ in range(5):
        os.kill(device.pid(), signal.SIGKILL)
        wait_until(lambda: device.process.pid is None)
    wait_until(lambda: device.process.broken)
    with pytest.raises(WorkerError, match="5 times in a row") as caught:
        device.run("test-echo", ["a"])
    assert caught.value.code == "device_process_dies"


def test_a_process_that_is_frozen_while_idle_is_replaced_when_it_is_needed(monkeypatch: pytest.MonkeyPatch):
    with running_device(monkeypatch, batch_timeout=2.0) as device:
        pid = device.pid()
        os.kill(pid, signal.SIGSTOP)
        assert device.run("test-echo", ["a", "b"]).counts == Counts(succeeded=2)
        assert device.pid() != pid


def test_a_chunk_that_waits_for_an_abandoned_load_is_not_considered_stuck(monkeypatch: pytest.MonkeyPatch):
    cancelled = CancelToken()
    with running_device(monkeypatch, batch_timeout=1.5) as device:
        pid = device.pid()
        loading = device.submit("test-load", ["a"], params={"load_seconds": 4}, cancelled=cancelled)
        wait_until(lambda: "loading test-load" in device.stages)
        cancelled.cancel()
        with pytest.raises(Cancelled):
            loading.result(10)
        assert device.run("test-echo", ["a"]).counts.succeeded == 1
        assert device.pid() == pid


def test_a_process_that_lacks_file_descriptors_is_started_later(
    device: RunningDevice, caplog: pytest.LogCaptureFixture
):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    pid = device.pid()
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: "cannot be started" in caplog.text)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert device.run("test-echo", ["a"]).counts.succeeded == 1


def test_a_chunk_cancelled_while_its_process_dies_is_not_run_again(device: RunningDevice, tmp_path: Path):
    started, cancelled = tmp_path / "started", CancelToken()
    running = device.submit("test-wait", ["a"], params={"seconds": 600, "started": str(started)}, cancelled=cancelled)
    wait_until(started.exists)
    os.kill(device.pid(), signal.SIGSTOP)
    cancelled.cancel()
    os.kill(device.pid(), signal.SIGKILL)
    with pytest.raises(Cancelled):
        running.result(10)
    started.unlink()
    device.run("test-echo", ["a"])
    assert not started.exists()
