"""A Redis with a `maxmemory`: what will not fit is refused before it is full, with the ways out."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.inputs.sources import ReadProgress
from tests.support.processes import RedisServer, Shell, environment

MB = 1024 * 1024


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A redis-server with room for eight megabytes, or so."""
    server = RedisServer(tmp_path_factory.mktemp("redis"), "--maxmemory", "10mb").start()
    yield server
    server.kill()


@pytest.fixture
def shell(small: RedisServer, tmp_path: Path) -> Iterator[Shell]:
    yield Shell(environment(tmp_path, small.url), tmp_path)
    assert small.client.keys("hugqueue:job:*") == []


def texts(count: int) -> list[str]:
    """So many texts of 200 bytes that no compression makes much smaller."""
    dice = random.Random(1)
    return [dice.randbytes(100).hex() for _ in range(count)]


def peak(server: RedisServer) -> int:
    return int(server.client.info("memory")["used_memory_peak"])


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_job_that_will_not_fit_is_refused_long_before_redis_is_full(
    shell: Shell, small: RedisServer, tmp_path: Path, kind: str
) -> None:
    found, path = texts(100_000), tmp_path / f"in.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"text": found}), path)
    else:
        path.write_text("".join(json.dumps({"text": text, "other": "x"}) + "\n" for text in found))
    small.client.config_resetstat()
    done = shell.run("submit", "--task", "test-echo", str(path), status=2)
    assert "of Redis's memory" in done.stderr and "(maxmemory)" in done.stderr
    assert all(way in done.stderr for way in ("--store", "raise maxmemory", "split the input"))
    assert peak(small) < 6 * MB
    estimate = float(done.stderr.split("about ")[1].split()[0])
    assert 20 < estimate < 45  # 10 MB of entropy, in 20 MB of text of which zstd makes about 11, twice


def test_a_job_that_fits_is_submitted_and_stored_payloads_do_not_count(
    small: RedisServer, shell: Shell, tmp_path: Path
) -> None:
    path = tmp_path / "in.txt"
    path.write_text("\n".join(texts(10_000)))
    shell.submit("--task", "test-echo", str(path))
    small.client.flushall()
    path.write_text("\n".join(texts(40_000)))
    shell.environ["HUGQUEUE_STORE_URL"] = str(tmp_path / "store")
    shell.submit("--task", "test-echo", str(path))
    small.client.flushall()


def test_vectors_count_by_the_record(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_text("word\n" * 200_000)
    done = shell.run("submit", "--task", "embedding", str(path), status=2)
    records, outcomes = re.findall(r"([\d.]+) MB for", done.stderr)
    assert float(outcomes) > 100 * float(records)


def test_of_standard_input_what_came_so_far_is_counted(shell: Shell) -> None:
    done = shell.run("submit", "--task", "test-echo", "-", input="\n".join(texts(60_000)), status=2)
    assert "of Redis's memory" in done.stderr
    assert "is full" not in done.stderr


def test_the_size_of_inputs_is_known_where_they_are_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1234")
    assert ReadProgress.of([str(tmp_path / "a.txt")] * 2).size == 8
    assert ReadProgress.of([str(tmp_path / "a.txt"), "-"]).share == 1.0
