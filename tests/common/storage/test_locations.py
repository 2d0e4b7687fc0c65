"""What counts as shared: the only files and URLs that a worker opens because a job or a record names them."""

from pathlib import Path

import pytest

from common.storage.locations import is_shared


def test_a_path_under_a_shared_directory_is_shared(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert is_shared(str(tmp_path / "data" / "a.txt"), [str(tmp_path / "data")])
    assert is_shared(f"file://{tmp_path}/data/a.txt", [f"{tmp_path}/data/"])


def test_a_path_that_only_begins_like_a_shared_directory_is_not_shared(tmp_path: Path) -> None:
    assert not is_shared(str(tmp_path / "database"), [str(tmp_path / "data")])
    assert not is_shared("s3://bucket/database/x", ["s3://bucket/data"])
    assert not is_shared("s3://bucket2/x", ["s3://bucket"])


def test_a_link_does_not_lead_out_of_a_shared_directory(tmp_path: Path) -> None:
    shared = tmp_path / "data"
    shared.mkdir()
    (tmp_path / "secret").write_text("x")
    (shared / "link").symlink_to(tmp_path / "secret")
    assert not is_shared(str(shared / "link"), [str(shared)])
    assert not is_shared(str(shared / ".." / "secret"), [str(shared)])


@pytest.mark.parametrize(
    "name",
    [
        "relative.txt",
        "s3://bucket/data/../secret",
        "s3://bucket/data/%2e%2e/secret",
        "s3://bucket/data/a?/../../secret",
        "sftp://host/data/a#/../../secret",
        "file:///data/../secret",
        "simplecache::s3://bucket/data/x",
        "http://169.254.169.254/latest",
        "S3://other/data/x",
        "s3://[bucket/data/x",
        "/data/\ud800",
        "",
        "\0",
    ],
)
def test_other_names_are_not_shared(name: str) -> None:
    assert not is_shared(name, ["s3://bucket/data", "sftp://host/data", "/data"])


@pytest.mark.parametrize("name", ["s3://bucket/data/x", "S3://bucket/data", "s3://bucket/data/a/b.parquet"])
def test_an_address_under_a_shared_address_is_shared(name: str) -> None:
    assert is_shared(name, ["/data", "s3://bucket/data/"])


def test_nothing_is_shared_by_itself() -> None:
    assert not is_shared("/etc/passwd", [])
    assert not is_shared("s3://bucket/x", [])
