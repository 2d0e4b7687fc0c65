"""The disk is full while results are written: a clear error, no half file, and nothing lost that was done."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.fault_jobs import LONG, Batch
from tests.support.full_disks import fill, small_disk
from tests.support.processes import Shell, Workers, wait_until

StartWorkers = Callable[..., Workers]
NewBatch = Callable[..., Batch]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "128k") as folder:
        yield folder


def test_results_that_do_not_fit_on_the_disk_leave_no_partial_file(
    shell: Shell, start_workers: StartWorkers, new_batch: NewBatch, disk: Path
) -> None:
    start_workers()
    batch = new_batch(30_000, 5_000, seconds=0)
    output = disk / "out.jsonl"
    said = shell.run("submit", *batch.arguments(), "-o", str(output), status=1).stderr
    assert said.splitlines()[-1] == f"Error: Cannot write {output}: No space left on device."
    assert list(disk.iterdir()) == []
    [listed] = batch.store.each_job()
    batch.id = listed.id
    for name in ("out.csv.gz", "out.parquet"):
        said = shell.run("results", batch.id, "-o", str(disk / name), status=1).stderr
        assert said == f"Error: Cannot write {disk / name}: No space left on device.\n"
        assert list(disk.iterdir()) == []
    batch.check()


@pytest.mark.faults
def test_an_older_file_stays_when_the_disk_is_full(
    shell: Shell, start_workers: StartWorkers, new_batch: NewBatch, disk: Path
) -> None:
    start_workers()
    batch = new_batch(10).submit()
    batch.finish()
    output = disk / "out.jsonl"
    output.write_text("old")
    filler = fill(disk)
    shell.run("results", batch.id, "-o", str(output), status=1)
    assert output.read_text() == "old"
    filler.unlink()
    shell.run("results", batch.id, "-o", str(output))
    assert len(output.read_text().splitlines()) == 10


def test_a_full_payload_store_is_reported_at_submit_and_workers_wait(
    shell: Shell, start_workers: StartWorkers, new_batch: NewBatch, disk: Path, tmp_path: Path
) -> None:
    go, store = tmp_path / "go", {"HUGQUEUE_STORE_URL": str(disk)}
    workers = start_workers(**store)
    shell.environ |= store
    batch = new_batch(600, 300, until=go).submit()
    wait_until(batch.leased, LONG, "it is at work")
    filler = fill(disk)
    said = shell.run("submit", *new_batch(600, 300).arguments(), status=1).stderr
    assert said.splitlines()[-1].endswith("No space left on device.") and said.count("\n") <= 2, said
    assert [job.id for job in batch.store.each_job()] == [batch.id], "nothing stays of the other"
    go.touch()
    wait_until(lambda: "to be retried: Cannot write" in workers.text(), LONG, "it has no room for outcomes")
    assert batch.job.counts.done == 0
    filler.unlink()
    wait_until(lambda: batch.job.status.finished, LONG, "there is room")
    rows = shell.results(batch.id)
    assert [row["output"] for row in rows] == [f"LINE {number}" for number in range(600)]
    assert [path.name for path in disk.iterdir()] == [batch.id]
    assert not [path.name for path in disk.rglob(".*")], "no half file"
