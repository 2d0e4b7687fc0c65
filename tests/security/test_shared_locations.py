"""Places that a job, a payload or a key in Redis names: a worker opens, writes and removes what is shared, no more."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import asdict

from common.inputs.file_split import FileSplit
from common.jobs import new_job_id
from common.queue.jobs import JobStore
from common.redis import keys
from common.redis.keys import JobKeys
from common.storage.filesystem import file_version
from tests.support import forged_redis_data
from tests.support.processes import RedisServer, Shell, Workers, wait_until

Started = tuple[Workers, Path]


@pytest.fixture
def started(start_workers: Callable[..., Workers], tmp_path: Path) -> Started:
    """A worker, and the directory that it was told is shared; beside it lies a secret, with a link to it inside."""
    shared = tmp_path / "shared"
    shared.mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "in.txt").write_text("red\n")
    (shared / "link").symlink_to(tmp_path / "secret")
    return start_workers(HUGQUEUE_SHARED=f"{shared},s3://bucket/data"), shared


def locations(shared: Path) -> list[str]:
    """Places that are not shared, though some begin like it."""
    secret = shared.parent / "secret"
    return [
        str(secret),
        f"file://{secret}",
        f"{shared}/link",
        f"{shared}/../secret",
        f"simplecache::file://{secret}",
        f"memory::{shared}",
        "s3://bucket/other",
        "s3://bucket/data/../other",
        "s3://[bucket/data",
        "http://127.0.0.1:1/",
        "hf://datasets/org/name",
        "secret",
        "",
    ]


def rows_of(path: Path, **changed: object) -> bytes:
    size, version = file_version(str(path))
    sound = FileSplit(str(path), "txt", 0, size, 0, size, version, 1000)
    return json.dumps(asdict(sound) | changed).encode()


def ends(server: RedisServer, jobs: list[str]) -> dict[str, str]:
    """Return by which code each job failed, once all are over."""
    store = JobStore(server.client, 60)
    wait_until(lambda: all(store.job(job).status.finished for job in jobs), 90, "all are over")
    return {job: failure.code for job in jobs if (failure := store.job(job).failure)}


def still_works(shell: Shell, directory: Path) -> None:
    (directory / "good.txt").write_text("a\nb\n")
    done = shell.run("submit", "--task", "test-echo", "good.txt", "--wait")
    assert [json.loads(line)["output"] for line in done.stdout.splitlines()] == ["A", "B"]


def test_no_location_that_is_not_shared_is_opened(
    server: RedisServer, shell: Shell, started: Started, tmp_path: Path
) -> None:
    workers, shared = started
    jobs = [
        forged_redis_data.write_job(server.client, {}, store=location) for location in locations(shared) if location
    ]
    jobs += [
        forged_redis_data.write_job(server.client, {}, output={"location": location, "format": "jsonl"})
        for location in locations(shared)
    ]
    for location in locations(shared):
        job = forged_redis_data.write_job(server.client, {})
        rows = rows_of(shared.parent / "secret" / "in.txt", source=f"{location}/in.txt")
        server.client.hset(JobKeys.of(job).input, "0", rows)
        jobs.append(job)
    assert ends(server, jobs) == dict.fromkeys(jobs, "address_not_allowed")
    still_works(shell, tmp_path)
    assert [path.name for path in (tmp_path / "secret").iterdir()] == ["in.txt"]
    assert "Traceback" not in workers.text()


def test_forged_ranges_of_a_shared_file_fail_their_job(
    server: RedisServer, shell: Shell, started: Started, tmp_path: Path
) -> None:
    workers, shared = started
    (shared / "in.txt").write_text("one\ntwo\n")
    forged = {
        rows_of(shared / "in.txt", source=f"{shared}/\ud800"): "broken_payload",
        rows_of(shared / "in.txt", size=3): "broken_payload",
        rows_of(shared / "in.txt", format="parquet"): "broken_payload",
        rows_of(shared / "in.txt", end=1 << 60): "broken_payload",
        b"{": "broken_payload",
    }
    jobs = {}
    for payload, code in forged.items():
        job = forged_redis_data.write_job(server.client, {})
        server.client.hset(JobKeys.of(job).input, "0", payload)
        jobs[job] = code
    assert ends(server, list(jobs)) == jobs
    for job in jobs:  # the producer opens no more than the worker does
        said = shell.run("results", job, status=1).stderr
        assert "Traceback" not in said, said
        assert [line for line in said.splitlines() if line.startswith("Error: results_lost")], said
    still_works(shell, tmp_path)
    assert "Traceback" not in workers.text()


def test_forged_notes_of_files_remove_nothing_and_stop_nothing(
    server: RedisServer, shell: Shell, start_workers: Callable[..., Workers], tmp_path: Path
) -> None:
    shared, old, name = tmp_path / "shared", "0123456789ab", "ba9876543210"
    for location in (shared / old, shared / name, tmp_path / "secret" / name):
        location.mkdir(parents=True)
        (location / "x").touch()
    (shared / "link").symlink_to(tmp_path / "secret")
    forged = {"../secret": str(shared), "": str(shared), "x": str(shared), name: f"{shared}/link", "c" * 12: "s3://[x"}
    server.client.hset(keys.STORED, mapping={**forged, old: str(shared)})
    workers = start_workers(HUGQUEUE_SHARED=f"{shared},s3://bucket")
    wait_until(lambda: not (shared / old).exists(), 30, "what a job left is removed")
    assert (tmp_path / "secret" / name / "x").exists() and (shared / name / "x").exists()
    still_works(shell, tmp_path)
    assert workers.stop() == 0
    server.client.delete(keys.STORED)
    server.client.set(keys.STORED, "no hash")
    again = start_workers(HUGQUEUE_SHARED=str(shared))
    wait_until(lambda: "the list of files cannot be inspected" in again.text(), 30, "it is logged")
    still_works(shell, tmp_path)
    assert "Traceback" not in workers.text() + again.text()


def test_links_below_a_shared_directory_lead_no_writer_out(
    server: RedisServer, shell: Shell, started: Started, tmp_path: Path
) -> None:
    workers, shared = started
    job = new_job_id()
    (shared / "out").mkdir()
    (shared / "out" / "_attempts").symlink_to(tmp_path / "secret")
    (shared / job).symlink_to(tmp_path / "secret")
    forged_redis_data.write_job(server.client, {}, output={"location": f"{shared}/out", "format": "jsonl"})
    forged_redis_data.write_job(server.client, {}, job_id=job, store=str(shared))
    for location in (f"{shared}/out/_attempts", f"{shared}/{job}"):
        wait_until(lambda location=location: f"Cannot write {location}" in workers.text(), 30, f"{location} is refused")
    server.client.hset(keys.STORED, job, str(shared))
    shell.run("delete", "--force", job, status=None)
    assert [path.name for path in (tmp_path / "secret").iterdir()] == ["in.txt"]
    still_works(shell, tmp_path)
