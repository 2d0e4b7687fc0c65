"""What a process that submits for others opens: files under shared locations, and no others."""

import shutil
from pathlib import Path

import pytest

from common.errors import UsageError
from common.settings import Settings
from common.storage.locations import MayOpen
from producer.submit.job_input import JobInput
from producer.submit.options import SubmitOptions
from producer.submit.plan import make_plan
from producer.submit.python_records import python_builder, records_from_python
from tests.support.processes import ROOT

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A shared directory with an image, beside another image that is not shared."""
    (tmp_path / "shared").mkdir()
    for folder in (tmp_path, tmp_path / "shared"):
        (folder / "a.png").write_bytes(PNG)
    (tmp_path / "shared" / "link.png").symlink_to(tmp_path / "a.png")
    return tmp_path / "shared"


@pytest.fixture
def may_open(shared: Path) -> MayOpen:
    return Settings(shared=(str(shared),)).may_open


def test_files_that_records_name_are_read_only_where_they_are_shared(shared: Path, may_open: MayOpen) -> None:
    names = ["a.png", "link.png", "../a.png"]
    rows = [{"image": str(shared / name)} for name in names]
    (shared / "rows.jsonl").write_text("".join(f'{{"image": "{row["image"]}"}}\n' for row in rows))
    options = SubmitOptions(task="image-classification")
    settings = Settings(broker_url="redis://", shared=())
    plan = make_plan([str(shared / "rows.jsonl")], options, settings, may_open)
    builder = python_builder(plan.task)
    for records in (
        list(plan.records()),
        list(make_plan([f"{shared}/*.png", f"{shared}/rows.jsonl"], options, settings, may_open).records())[-3:],
        list(records_from_python(rows, builder, 10_000, may_open=may_open)),
    ):
        assert [record.failure.code if record.failure else None for record in records] == [None, "no_file", "no_file"]
        assert [record.blob for record in records] == [PNG, None, None]
        assert "is not under a location that workers may open" in records[1].failure.message
    assert all(record.blob for record in records_from_python(rows, builder, 10_000))


@pytest.mark.parametrize("name", ["../a.png", "*/../../a.png", "link.png", "-", "file:///etc/passwd", "s3://bucket/a"])
def test_an_input_that_is_not_shared_is_refused(shared: Path, may_open: MayOpen, name: str) -> None:
    path = name if "://" in name or name == "-" else str(shared / name)
    with pytest.raises(UsageError, match="is not under a shared location"):
        make_plan([path], SubmitOptions(task="image-classification"), Settings(broker_url="redis://"), may_open)


def test_a_job_is_no_file_and_never_opened_as_one(
    may_open: MayOpen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, name = Settings(broker_url="redis://"), "job:/../requests.jsonl"
    plan = make_plan(["job:0123456789ab"], SubmitOptions(task="embedding"), settings, may_open)
    assert isinstance(plan.inputs, JobInput) and plan.inputs.job == "0123456789ab"
    (tmp_path / "job:").mkdir()
    shutil.copy(ROOT / "examples" / "requests.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="--format does not go with job:"):
        make_plan([name], SubmitOptions(task="text-generation", format="openai"), settings, may_open)
