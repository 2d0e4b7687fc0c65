"""The device process dies, hangs, or loses its device: what that costs, and what it must not cost."""

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import Cancelled, CodedError, ModelError, WorkerError
from common.jobs import JobSpec, new_job_id
from common.payloads.codec import decode_outcomes
from common.records import Counts, Json
from common.reporting import CancelToken
from tests.support.device_process import Room, codes, device_room, outcomes
from tests.support.processes import wait_until

TEXTS = ["a", "b", "c", "d", "e", "f"]


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    with device_room(monkeypatch) as started:
        yield started


@pytest.mark.parametrize(
    ("text", "words"), [("crash", "SIGSEGV"), ("oom-kill", "SIGKILL"), ("exit", "status 3"), ("gpu-lost", "GPU")]
)
def test_a_record_that_kills_the_process_fails_alone(room: Room, text: str, words: str):
    result = room.run("test-crash", [*TEXTS, text, "g", "h"])
    assert codes(result) == {6: "worker_died"}
    assert words in (outcomes(result)[6].failure or pytest.fail()).message
    assert [outcome.output for outcome in outcomes(result).values()] == [*"ABCDEF", None, "G", "H"]
    assert result.counts == Counts(succeeded=8, failed=1)


def test_several_killers_fail_and_no_other(room: Room):
    result = room.run("test-crash", ["crash", *TEXTS, "oom-kill", "g"], params={"batch": 2})
    assert codes(result) == {0: "worker_died", 7: "worker_died"}


def test_a_chunk_of_killers_alone_keeps_the_type_of_its_outputs(room: Room):
    healthy = decode_outcomes(room.run("test-vector", ["a"]).payload).schema
    result = room.run("test-vector", ["crash"])
    assert codes(result) == {0: "worker_died"}
    assert decode_outcomes(result.payload).schema.equals(healthy)


def test_a_result_in_parts_keeps_the_type_of_its_outputs(room: Room):
    result = room.run("test-vector", ["a", "bb", "crash"], params={"batch": 1})
    assert codes(result) == {2: "worker_died"}
    assert decode_outcomes(result.payload)["output"].to_pylist() == [[1.0, 2.0, 1.0], [1.0, 2.0, 2.0], None]


def test_a_death_that_was_not_the_records_fault_costs_nothing(room: Room, tmp_path: Path):
    result = room.run("test-crash", ["a", f"once:{tmp_path / 'flag'}", "c"])
    assert result.counts == Counts(succeeded=3)


def test_only_wanted_positions_are_run_again_after_a_death(room: Room):
    result = room.run("test-crash", ["crash", "b", "crash", "d"], positions=[1, 2, 3])
    assert {at: outcome.output for at, outcome in outcomes(result).items()} == {1: "B", 2: None, 3: "D"}


def test_run_with_caution_each_record_is_a_batch_of_its_own(room: Room):
    result = room.run("test-crash", ["a", "crash", "c"], serial=True)
    assert codes(result) == {1: "worker_died"}
    assert [o.output for o in outcomes(result).values()] == ["A", None, "C"]


def test_chunks_that_waited_are_answered_as_if_nothing_had_been(room: Room, tmp_path: Path):
    started, until = tmp_path / "started", tmp_path / "until"
    running = room.submit("test-wait", ["a"], params={"until": str(until), "started": str(started)})
    wait_until(started.exists)
    waiting = [room.submit("test-echo", [f"text {n}"]) for n in range(2)]
    os.kill(room.pid(), signal.SIGKILL)
    until.touch()
    assert [outcomes(f.result(30))[0].output for f in [running, *waiting]] == ["A", "TEXT 0", "TEXT 1"]


def test_a_process_that_dies_idle_is_replaced(room: Room):
    pid = room.pid()
    os.kill(pid, signal.SIGKILL)
    assert room.run("test-echo", ["a"]).counts.succeeded == 1
    assert room.pid() != pid


def test_a_record_that_hangs_fails_alone_with_timeout(monkeypatch: pytest.MonkeyPatch):
    with device_room(monkeypatch, batch_timeout=2.0) as room:
        result = room.run("test-crash", ["a", "b", "hang", "d"])
        assert codes(result) == {2: "timeout"}
        assert result.counts == Counts(succeeded=3, failed=1)


def test_a_record_that_hangs_before_the_first_batch_fails_alone(monkeypatch: pytest.MonkeyPatch):
    with device_room(monkeypatch, batch_timeout=2.0) as room:
        assert codes(room.run("test-crash", ["a", "hang-early", "c"])) == {1: "timeout"}


def test_a_long_batch_that_gives_signs_of_life_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    with device_room(monkeypatch, batch_timeout=2.0) as room:
        pid = room.pid()
        assert room.run("test-wait", ["a"], params={"seconds": 3}).counts.succeeded == 1
        assert room.pid() == pid


def test_slow_loading_is_no_hang(monkeypatch: pytest.MonkeyPatch):
    with device_room(monkeypatch, batch_timeout=2.0) as room:
        assert room.run("test-load", ["a"], params={"load_seconds": 3}).counts.succeeded == 1


def test_a_load_that_gets_no_further_is_ended_and_left_to_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with device_room(monkeypatch, load_timeout=1.0) as room:
        pid = room.pid()
        params: dict[str, Json] = {"load_seconds": 600, "load_log": str(tmp_path / "log")}
        spec = JobSpec(new_job_id(), "test-load", params=params)
        for waiting in [room.submit("test-load", [f"text {n}"], spec=spec) for n in range(3)]:
            with pytest.raises(WorkerError, match="HUGQUEUE_LOAD_TIMEOUT") as caught:
                waiting.result(30)
            assert caught.value.code == "load_timeout"
        assert room.run("test-echo", ["a"]).counts.succeeded == 1
        assert room.pid() != pid
        assert (tmp_path / "log").read_text().count("loaded") == 1


def test_a_slow_load_that_gets_on_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with device_room(monkeypatch, load_timeout=1.0) as room:
        pid = room.pid()
        params: dict[str, Json] = {"load_seconds": 3, "load_write": str(tmp_path / "data")}
        assert room.run("test-load", ["a"], params=params).counts.succeeded == 1
        assert room.pid() == pid


def test_a_loader_that_is_frozen_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with device_room(monkeypatch, load_timeout=1.0) as room:
        params: dict[str, Json] = {"load_seconds": 600, "load_write": str(tmp_path / "data")}
        loading = room.submit("test-load", ["a"], params=params)
        wait_until((tmp_path / "data").exists)
        os.kill(room.pid(), signal.SIGSTOP)
        with pytest.raises(WorkerError) as caught:
            loading.result(30)
        assert caught.value.code == "load_timeout"


@pytest.mark.parametrize("frozen", [False, True])
def test_a_load_that_nobody_waits_for_any_longer_is_ended(
    room: Room, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, frozen: bool
):
    monkeypatch.setattr("workers.device.client.process._UNWANTED_SECONDS", 1.0)
    stuck, cancelled = tmp_path / "stuck", CancelToken()
    stuck.touch()
    loading = room.submit("test-load", ["a"], params={"load_stuck": str(stuck)}, cancelled=cancelled)
    wait_until(lambda: "loading test-load" in room.stages)
    if frozen:
        os.kill(room.pid(), signal.SIGSTOP)
    waiting = room.submit("test-echo", ["b"])
    cancelled.cancel()
    with pytest.raises(Cancelled):
        loading.result(10)
    assert waiting.result(30).counts.succeeded == 1


def test_a_death_right_after_a_slow_load_recovers_without_a_spiral(room: Room):
    result = room.run("test-load", ["a", "crash", "c"], params={"load_seconds": 1, "batch": 1})
    assert codes(result) == {1: "worker_died"}
    assert room.stages.count("loading test-load") <= 4


@pytest.mark.parametrize(
    ("how", "words", "error", "code"),
    [
        ("load_crash", "SIGSEGV", ModelError, "model_kills_worker"),
        ("load_kill", "SIGKILL", WorkerError, "no_memory"),  # as the kernel does it: a larger worker may load it
    ],
)
def test_a_model_whose_loading_kills_twice_is_not_loaded_again(
    room: Room, tmp_path: Path, how: str, words: str, error: type[CodedError], code: str
):
    fatal = tmp_path / "fatal"
    fatal.touch()
    with pytest.raises(error, match=words) as caught:
        room.run("test-load", ["a"], params={how: str(fatal)})
    assert caught.value.code == code
    assert room.run("test-echo", ["a"]).counts.succeeded == 1
    fatal.unlink()  # another job may try it again
    assert room.run("test-load", ["a"], params={how: str(fatal)}).counts.succeeded == 1


def test_all_chunks_that_wait_for_a_model_hear_that_its_loading_kills(room: Room, tmp_path: Path):
    fatal, log = tmp_path / "fatal", tmp_path / "log"
    fatal.touch()
    params: dict[str, Json] = {"load_seconds": 1, "load_crash": str(fatal), "load_log": str(log)}
    spec = JobSpec(new_job_id(), "test-load", params=params)
    for waiting in [room.submit("test-load", [f"text {n}"], spec=spec) for n in range(3)]:
        with pytest.raises(ModelError, match="SIGSEGV"):
            waiting.result(30)
    assert log.read_text().count("loaded") == 2


def test_a_preload_that_is_killed_twice_is_an_error_of_start(monkeypatch: pytest.MonkeyPatch):
    preload = ("test-suicide",)
    with pytest.raises(WorkerError, match="test-suicide") as caught, device_room(monkeypatch, preload=preload):
        pass
    assert caught.value.code == "no_memory"


def test_a_process_that_keeps_dying_with_nothing_to_do_is_given_up(room: Room):
    for _ in range(5):
        os.kill(room.pid(), signal.SIGKILL)
        wait_until(lambda: room.process.pid is None)
    wait_until(lambda: room.process.broken)
    with pytest.raises(WorkerError, match="5 times in a row") as caught:
        room.run("test-echo", ["a"])
    assert caught.value.code == "device_process_dies"


def test_a_process_that_is_frozen_while_idle_is_replaced_when_it_is_needed(monkeypatch: pytest.MonkeyPatch):
    with device_room(monkeypatch, batch_timeout=2.0) as room:
        pid = room.pid()
        os.kill(pid, signal.SIGSTOP)
        assert room.run("test-echo", ["a", "b"]).counts == Counts(succeeded=2)
        assert room.pid() != pid


def test_a_chunk_that_waits_for_an_abandoned_load_is_not_taken_for_stuck(monkeypatch: pytest.MonkeyPatch):
    cancelled = CancelToken()
    with device_room(monkeypatch, batch_timeout=1.5) as room:
        pid = room.pid()
        loading = room.submit("test-load", ["a"], params={"load_seconds": 4}, cancelled=cancelled)
        wait_until(lambda: "loading test-load" in room.stages)
        cancelled.cancel()
        with pytest.raises(Cancelled):
            loading.result(10)
        assert room.run("test-echo", ["a"]).counts.succeeded == 1
        assert room.pid() == pid


def test_a_process_that_lacks_file_descriptors_is_started_later(room: Room, caplog: pytest.LogCaptureFixture):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    pid = room.pid()
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: "cannot be started" in caplog.text)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert room.run("test-echo", ["a"]).counts.succeeded == 1


def test_a_chunk_given_up_while_its_process_dies_is_not_run_again(room: Room, tmp_path: Path):
    started, cancelled = tmp_path / "started", CancelToken()
    running = room.submit("test-wait", ["a"], params={"seconds": 600, "started": str(started)}, cancelled=cancelled)
    wait_until(started.exists)
    os.kill(room.pid(), signal.SIGSTOP)
    cancelled.cancel()
    os.kill(room.pid(), signal.SIGKILL)
    with pytest.raises(Cancelled):
        running.result(10)
    started.unlink()
    room.run("test-echo", ["a"])
    assert not started.exists()
