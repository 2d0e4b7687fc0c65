"""Files of jobs that are no more: found by whoever may open them, and left behind by nobody."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from common.errors import ModelError
from common.jobs import JobSpec, Output, new_job_id
from common.queue.jobs import JobStore
from common.queue.ledger import Ledger
from common.redis import keys
from common.redis.keys import JobKeys
from common.storage.storage import open_storage
from tests.support.processes import RedisServer

PAYLOAD = b"x" * 2000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def files(server: RedisServer, folder: Path) -> JobStore:
    """A store that may open `folder`, and all else below it."""
    return JobStore(server.client, 100, lambda location: location.startswith(str(folder)))


def begin(store: JobStore, folder: Path, **more: object) -> JobSpec:
    spec = JobSpec(new_job_id(), "test-echo", store=str(folder), **more)  # type: ignore[arg-type]
    store.create(spec)
    store.payloads(spec).add_records(0, PAYLOAD)
    return spec


def remove_orphans(store: JobStore) -> list[str]:
    """What a reaper does; the jobs whose files were removed."""
    found, cursor = [], None
    while cursor != 0:
        cursor, gone = store.orphaned_files(cursor or 0, 100)
        found += gone
    return [job_id for job_id in found if store.remove_files(job_id)]


def test_of_many_stored_jobs_only_those_that_are_gone_lose_their_files(
    server: RedisServer, files: JobStore, folder: Path
) -> None:
    specs = [begin(files, folder) for _ in range(230)]
    gone = {spec.id for spec in specs[::100]}
    for job_id in gone:
        server.client.delete(*JobKeys.of(job_id).all())
    assert set(remove_orphans(files)) == gone
    assert {path.name for path in folder.iterdir()} == {spec.id for spec in specs} - gone
    assert server.client.hlen(keys.STORED) == len(specs) - len(gone)
    assert remove_orphans(files) == []


def test_files_that_this_process_may_not_open_are_left_to_others(
    server: RedisServer, files: JobStore, folder: Path
) -> None:
    spec = begin(files, folder)
    stranger = JobStore(server.client, 100)
    assert stranger.delete(spec.id) == "deleted"
    assert remove_orphans(stranger) == []
    assert (folder / spec.id).exists()
    assert remove_orphans(files) == [spec.id]
    assert not (folder / spec.id).exists()


class DeletingClient(redis.Redis):
    """A connection whose user deletes a job just before its first file of a process is written."""

    def hset(self, name: str, key: str, *args: object, **kwargs: object) -> object:
        answer = super().hset(name, key, *args, **kwargs)
        if name == keys.STORED and (delete := self.__dict__.pop("delete_job", None)):
            delete()
        return answer


def test_a_job_deleted_while_its_outcomes_are_written_leaves_nothing(
    server: RedisServer, files: JobStore, ledger: Ledger, folder: Path
) -> None:
    spec = begin(files, folder)
    ledger.accept(spec.id, 1, 1)
    client = DeletingClient(port=server.port)
    client.__dict__["delete_job"] = lambda: files.delete(spec.id)
    JobStore(client, 100, lambda _: True).payloads(spec).write_outcomes(0, (0, 1), PAYLOAD)
    assert list(folder.iterdir()) == []
    assert server.client.keys("*") == []


def test_of_several_processes_that_remove_files_each_returns_once_all_are_gone(folder: Path) -> None:
    """As `producer delete` and the reaper do, which finds the job's files without their job."""
    for number in range(2000):
        (folder / "job" / f"in{number % 7}").mkdir(parents=True, exist_ok=True)
        (folder / "job" / f"in{number % 7}" / f"{number}.arrow").touch()

    def remove() -> bool:
        open_storage(str(folder), "job").remove_all()
        return (folder / "job").exists()

    with ThreadPoolExecutor(4) as pool:
        left = [done.result() for done in [pool.submit(remove) for _ in range(4)]]
    assert not any(left)


def test_a_late_worker_of_a_deleted_job_leaves_nothing(
    server: RedisServer, files: JobStore, ledger: Ledger, folder: Path
) -> None:
    spec = begin(files, folder)
    ledger.accept(spec.id, 1, 1)
    payloads = files.payloads(spec)
    payloads.write_outcomes(0, (0, 1), PAYLOAD)
    assert files.delete(spec.id) == "deleted"
    payloads.write_outcomes(0, (0, 2), PAYLOAD)
    assert list(folder.iterdir()) == []
    assert server.client.keys("*") == []


def test_what_a_worker_writes_in_the_moment_of_a_delete_is_found_later(
    server: RedisServer, files: JobStore, folder: Path
) -> None:
    spec = begin(files, folder)
    files.delete(spec.id)
    server.client.hset(keys.STORED, spec.id, str(folder))  # as it does before each of its first files
    (folder / spec.id / "out").mkdir(parents=True)
    (folder / spec.id / "out" / "0-0-1.arrow").write_bytes(PAYLOAD)
    assert remove_orphans(files) == [spec.id]
    assert list(folder.iterdir()) == [] and server.client.hlen(keys.STORED) == 0


def test_a_forged_location_is_not_removed(server: RedisServer, files: JobStore, folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "0123456789ab"
    mine.mkdir(parents=True)
    server.client.hset(keys.STORED, mapping={"0123456789ab": str(tmp_path / "mine"), "../mine": str(folder)})
    assert remove_orphans(files) == []
    assert mine.exists()


def test_the_parts_under_way_of_a_deleted_job_go_and_the_others_stay(files: JobStore, folder: Path) -> None:
    spec = begin(files, folder, output=Output(str(folder / "out"), "jsonl"))
    for name in (f"_attempts/{spec.id}/0.0.1.jsonl", "part-00001.jsonl"):
        (folder / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "out" / name).write_text("")
    files.delete(spec.id)
    assert [path.name for path in (folder / "out").iterdir()] == ["part-00001.jsonl"]


def test_a_store_that_may_not_be_opened_is_refused(server: RedisServer, files: JobStore, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not under a shared location"):
        begin(files, tmp_path / "elsewhere")
