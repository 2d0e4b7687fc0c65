"""An output file appears complete or not at all, and what stands in its way is said before the work."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import HugqueueError, UsageError
from common.jobs import JobSpec
from common.output_types import OutputForm
from common.records import Failure, Outcome
from common.tasks import TASKS
from producer.outputs import ResultRow, check_output, open_output

ROOT = Path(__file__).parents[3]
TEXTS = {"text": "text"}
VECTORS = TASKS["embedding"].output_form({})
EMBEDDING = JobSpec("0" * 12, "embedding", keep=None)
ROWS = [ResultRow(0, "a", Outcome([1.0, 2.0])), ResultRow(1, "b", Outcome(failure=Failure("no_text", "empty")))]
NAMES = ["a.jsonl", "a.csv", "a.parquet", "a.npy", "a.jsonl.gz", "a.csv.gz"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_file_leaves_the_old_one_and_nothing_else(tmp_path, name, error):
    path = tmp_path / name
    path.write_text("old")
    with pytest.raises(error), open_output(path, EMBEDDING, TEXTS) as writer:
        writer.write_all(ROWS)
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", NAMES)
def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path, name):
    path = tmp_path / name
    path.write_text("old")
    with open_output(path, EMBEDDING, TEXTS) as writer:
        for row in ROWS:
            writer.write(row)
            assert path.read_text() == "old"
    assert path.read_bytes() != b"old"
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".part")]


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_is_reported_and_leaves_no_file(tmp_path, name):
    """A limit on the size of files stands for the disk; a process of its own, since the limit cannot be taken back."""
    script = (
        "import resource, signal, sys\nfrom pathlib import Path\n"
        "from common.errors import HugqueueError\nfrom common.jobs import JobSpec\nfrom common.records import Outcome\n"
        "from producer.outputs import ResultRow, open_output\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "import random, pyarrow.parquet\nresource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "try:\n"
        "    spec = JobSpec('0' * 12, 'embedding', keep=None)\n"
        "    with open_output(Path(sys.argv[1]), spec, {'text': 'text'}) as writer:\n"
        "        writer.write_all(ResultRow(n, 'x', Outcome([random.random()] * 8)) for n in range(20_000))\n"
        "except HugqueueError as error: print(error)\n"
    )
    path = tmp_path / name
    done = subprocess.run(
        [sys.executable, "-c", script, path], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == f"Cannot write {path}: File too large.\n"
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_the_umask_decides_who_may_read(tmp_path):
    before = os.umask(0o027)
    try:
        with open_output(tmp_path / "a.jsonl", EMBEDDING, TEXTS) as writer:
            writer.write_all(ROWS)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.jsonl").stat().st_mode) == 0o640


def test_a_link_still_points_to_the_same_target(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "a.jsonl"
    link.symlink_to(tmp_path / "there" / "real.jsonl")
    with open_output(link, EMBEDDING, TEXTS) as writer:
        writer.write_all(ROWS)
    assert link.is_symlink()
    assert len((tmp_path / "there" / "real.jsonl").read_text().splitlines()) == 2


def test_a_long_name_is_written(tmp_path):
    path = tmp_path / ("가" * 80 + ".jsonl")
    with open_output(path, EMBEDDING, TEXTS) as writer:
        writer.write_all(ROWS)
    assert path.exists()


def test_a_directory_deleted_meanwhile_is_reported(tmp_path):
    with pytest.raises(HugqueueError, match=r"Cannot write .*: No such file or directory"):
        open_output(tmp_path / "gone" / "a.jsonl", EMBEDDING, TEXTS).__enter__()


def refused(path: Path, form: OutputForm | None = VECTORS, inputs: tuple[str, ...] = ()) -> str:
    with pytest.raises(UsageError) as caught:
        check_output(path, form, inputs)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a", "a.txt", "a.json", "a.parquet.gz", "a.npy.gz", "a.gz", ".jsonl"])
def test_an_unknown_extension_is_refused(tmp_path, name):
    assert "expected one of .jsonl, .csv, .parquet, .npy, .jsonl.gz, .csv.gz" in refused(tmp_path / name)


def test_a_location_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "dir.jsonl").mkdir()
    assert "is a directory" in refused(tmp_path / "dir.jsonl")
    assert refused(tmp_path / "no" / "a.csv").startswith(f"There is no directory {tmp_path}/no")
    (tmp_path / "file").write_text("")
    assert "There is no directory" in refused(tmp_path / "file" / "a.csv")
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "not a regular file" in refused(tmp_path / "pipe.jsonl")


def test_a_directory_that_may_not_be_written_is_refused(tmp_path):
    """Root may write everywhere but to what the kernel itself keeps."""
    closed = Path("/proc") if os.geteuid() == 0 else tmp_path / "closed"
    if os.geteuid() != 0:
        closed.mkdir(mode=0o555)
    assert refused(closed / "a.jsonl").startswith(f"{closed}/a.jsonl cannot be written: ")


def test_an_input_is_not_overwritten(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("{}")
    assert "is also an input" in refused(path, inputs=("-", str(tmp_path / "." / "a.jsonl")))


def test_npy_suits_only_outputs_that_are_vectors(tmp_path):
    label = TASKS["text-classification"].output_form({})
    assert "an output of this task is struct<label: string, score: double>" in refused(tmp_path / "a.npy", label)
    images = TASKS["image-feature-extraction"]
    assert ".npy holds one vector" in refused(tmp_path / "a.npy", images.output_form({}))
    check_output(tmp_path / "a.npy", images.output_form({"pool": True}))
    check_output(tmp_path / "a.npy", VECTORS)
    check_output(tmp_path / "a.npy", None)  # only the runner knows
    assert list(tmp_path.iterdir()) == []


STREAM = """
import resource, sys
from pathlib import Path
from common.jobs import JobSpec
from common.records import Outcome
from producer.outputs import ResultRow, open_output
before = "pyarrow" in sys.modules or "numpy" in sys.modules
with open_output(Path(sys.argv[1]), JobSpec("0" * 12, "embedding", keep=None), {"text": "text"}) as writer:
    writer.write(ResultRow(0, "warm up", Outcome([0.5] * 100)))
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    writer.write_all(ResultRow(n, "a text of some length", Outcome([0.5] * 100)) for n in range(60_000))
    print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
"""


@pytest.mark.parametrize("name", ["a.jsonl", "a.npy", "a.parquet"])
def test_rows_stream_through_in_bounded_memory(tmp_path, name):
    done = subprocess.run(
        [sys.executable, "-c", STREAM, tmp_path / name],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    heavy, kilobytes = done.stdout.split()
    assert heavy == "False"
    assert int(kilobytes) < (60_000 if name == "a.parquet" else 5_000)
