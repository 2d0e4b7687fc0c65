"""The embedded Redis: who starts it, who shares it, and that nothing stays behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from common.errors import StoreUnavailable, UsageError
from common.redis.client import connect
from common.settings import load_settings
from producer.embedded.attach import attach
from producer.embedded.daemon import ALREADY_RUNNING
from producer.embedded.file_lock import LockFile
from producer.embedded.redis_server import ServerState, probe
from producer.embedded.server_binary import find_binary, recorded_release
from producer.embedded.state_dir import StateDir
from tests.support.embedded_processes import Holder, Home
from tests.support.processes import Shell, redis_binary, wait_until

Hold = Callable[[], Holder]


@pytest.fixture
def hold(home: Home) -> Iterator[Hold]:
    holders: list[Holder] = []

    def start() -> Holder:
        holders.append(Holder(home.environ))
        return holders[-1]

    yield start
    for holder in holders:
        if holder.process.poll() is None:
            holder.kill()


def count_up(home: Home, **changes: str) -> int:
    """Attach, count in Redis, and leave."""
    with attach(load_settings(home.environ | changes), with_worker=False, notify=lambda _: None) as settings:
        return int(connect(settings.broker_url or "").incr("counter"))


def test_the_first_command_starts_redis_and_the_end_leaves_no_process(home: Home, hold: Hold) -> None:
    holder = hold()
    [said] = holder.facts["said"]
    version = holder.client.info("server")["valkey_version"]
    assert said == f"started an embedded Redis (Valkey {version}) in {home.path}; log: {home.path / 'daemon.log'}"
    assert holder.client.ping()
    holder.leave()
    home.wait_until_empty()
    assert not (home.path / "redis.sock").exists()


def test_redis_listens_on_a_private_socket_and_persists_its_data(home: Home, hold: Hold) -> None:
    client = hold().client
    settings = client.config_get("*")
    wanted = {"port": "0", "appendonly": "yes", "appendfsync": "everysec", "save": "", "maxmemory-policy": "noeviction"}
    assert {name: settings[name] for name in wanted} == wanted
    assert (home.path / "redis.sock").stat().st_mode & 0o777 == 0o700
    for directory in (home.path, home.path / "redis"):
        assert directory.stat().st_mode & 0o777 == 0o700
    assert [file for file in home.path.rglob("*") if file.is_file() and file.stat().st_mode & 0o022] == []


def test_what_is_stored_is_there_the_next_time(home: Home) -> None:
    assert count_up(home) == 1
    home.wait_until_empty()
    assert count_up(home) == 2


def test_commands_that_start_at_the_same_moment_share_one_daemon(home: Home, hold: Hold) -> None:
    holders = [hold() for _ in range(4)]
    addresses = {holder.facts["url"] for holder in holders}
    assert len(addresses) == 1
    assert len([holder for holder in holders if holder.facts["said"]]) == 1
    wait_until(lambda: len(home.processes("producer.embedded.daemon")) == 1, 10, "one daemon")
    assert {holder.client.info("server")["process_id"] for holder in holders} == {home.server().pid}


def test_redis_stays_until_the_last_command_has_left(home: Home, hold: Hold) -> None:
    first, second = hold(), hold()
    assert first.client.ping()
    daemon = home.daemon().pid
    assert second.client.ping()
    first.leave()
    assert second.client.ping()
    assert home.daemon().pid == daemon
    second.leave()
    home.wait_until_empty()


def test_commands_in_quick_succession_never_miss_each_other(home: Home) -> None:
    """Each comes at another moment of the daemon's end."""
    assert [count_up(home) for _ in range(12)] == list(range(1, 13))


def test_a_killed_command_leaves_no_process(home: Home, hold: Hold) -> None:
    holder = hold()
    assert holder.client.ping()
    holder.kill(signal.SIGKILL)
    home.wait_until_empty()


def test_ctrl_c_in_one_terminal_does_not_take_redis_from_another(home: Home, hold: Hold) -> None:
    first = hold()
    assert first.client.ping()
    second = hold()
    assert second.client.ping()
    os.killpg(first.process.pid, signal.SIGINT)
    first.process.communicate(timeout=20)
    assert second.client.ping()
    assert os.getsid(home.daemon().pid) not in (first.process.pid, second.process.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_a_killed_daemon_leaves_no_redis_and_loses_no_data(home: Home, hold: Hold) -> None:
    holder = hold()
    holder.client.set("counter", 41)
    home.daemon().kill()
    home.wait_until_empty()
    assert count_up(home) == 42


def test_a_redis_without_its_daemon_is_ended_before_the_next_one_starts(home: Home, hold: Hold) -> None:
    """As a killed daemon leaves it on systems that do not end children with their parent."""
    assert count_up(home) == 1
    home.wait_until_empty()
    state_dir = StateDir.of(load_settings(home.environ))
    with LockFile(state_dir.server) as lock:
        assert lock.lock_exclusive()
        command = [redis_binary(), "--port", "0", "--unixsocket", str(state_dir.socket), "--dir", str(state_dir.data)]
        orphan = subprocess.Popen([*command, "--appendonly", "yes", "--save", ""], pass_fds=(lock.fileno(),))
    wait_until(lambda: probe(state_dir.url) is ServerState.READY, 10, "the orphan answers")
    holder = hold()
    assert int(holder.client.incr("counter")) == 2
    assert holder.client.info("server")["process_id"] != orphan.pid
    assert orphan.wait(10) == 0


def test_redis_that_is_killed_is_started_again(home: Home, hold: Hold) -> None:
    client = hold().client
    client.set("kept", "yes")
    before = home.server().pid
    home.server().kill()

    def again() -> bool:
        try:
            return bool(client.info("server")["process_id"] != before)
        except redis.RedisError:
            return False

    wait_until(again, 20, "another redis-server answers")
    assert client.get("kept") == b"yes"


def test_a_stopped_daemon_stops_redis_too(home: Home, hold: Hold) -> None:
    assert hold().client.ping()
    home.daemon().terminate()
    home.wait_until_empty()


def test_a_second_daemon_exits(home: Home, hold: Hold) -> None:
    assert hold().client.ping()
    daemon = home.daemon().pid
    done = subprocess.run([sys.executable, "-P", "-m", "producer.embedded.daemon"], env=home.environ, check=False)
    assert done.returncode == ALREADY_RUNNING
    assert home.daemon().pid == daemon


@pytest.mark.parametrize("name", ["d" * 120, "with a space", "상태 폴더", "50%?#"])
def test_any_name_of_the_state_directory_will_do(home: Home, tmp_path: Path, name: str) -> None:
    elsewhere = Home(home.environ | {"HUGQUEUE_HOME": str(tmp_path / name)})
    assert [count_up(elsewhere), count_up(elsewhere)] == [1, 2]
    elsewhere.wait_until_empty()
    assert (tmp_path / name / "redis" / "version.json").exists()


def test_a_state_directory_that_others_can_write_to_is_refused(home: Home) -> None:
    home.path.mkdir()
    home.path.chmod(0o777)
    with pytest.raises(UsageError, match=r"is not private: .* mode 0777; expected .* 0700"):
        count_up(home)


def test_a_link_planted_where_the_socket_goes_is_refused(home: Home, tmp_path: Path) -> None:
    elsewhere = Home(home.environ | {"HUGQUEUE_HOME": str(tmp_path / ("d" * 120))})
    directory = StateDir.of(load_settings(elsewhere.environ)).socket.parent
    directory.symlink_to(tmp_path)
    try:
        with pytest.raises(UsageError, match="is not private"):
            count_up(elsewhere)
    finally:
        directory.unlink()


def test_a_state_directory_that_cannot_be_made_is_refused(home: Home, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="HUGQUEUE_HOME"):
        count_up(home, HUGQUEUE_HOME=str(tmp_path / "file" / "state"))


def test_a_redis_that_cannot_start_is_reported_with_its_log(home: Home) -> None:
    assert count_up(home) == 1
    home.wait_until_empty()
    for file in (home.path / "redis").rglob("*.aof"):
        file.write_bytes(b"no append-only file at all\r\n")
    with pytest.raises(StoreUnavailable, match=r"(?s)could not start: .*append only file.*redis\.log.*daemon\.log"):
        count_up(home)
    home.wait_until_empty()


def test_a_look_at_an_empty_state_leaves_it_to_any_server(home: Home) -> None:
    Shell(home.environ, home.path.parent).run("jobs")
    home.wait_until_empty()
    assert list((home.path / "redis").iterdir()) == []


def test_the_server_that_wrote_a_job_is_recorded(home: Home) -> None:
    state_dir = StateDir.of(load_settings(home.environ))
    assert count_up(home) == 1
    home.wait_until_empty()
    written = recorded_release(state_dir)
    assert written and written == find_binary(state_dir).release
