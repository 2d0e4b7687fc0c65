"""The disk is full while results are written: a clear error, no half file, and nothing lost that was done."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.disks import fill, small_disk
from tests.faults.jobs import Batch
from tests.processes import Shell, Workers

StartWorkers = Callable[..., Workers]
NewBatch = Callable[..., Batch]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "128k") as place:
        yield place


def test_results_that_the_disk_has_no_room_for_are_told_and_leave_no_half_file(
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
