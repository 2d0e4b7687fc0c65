"""`--template` and `--system`: typed with escapes, or read from a file."""

from pathlib import Path
from typing import Any

import click
import pytest

from common.errors import UsageError
from producer.cli.main import main


def parsed(option: str, value: str) -> Any:
    command = main.get_command(click.Context(main), "submit")
    assert command
    context = command.make_context("submit", ["--task", "embedding", "in.csv", option, value])
    return context.params[option.removeprefix("--")]


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        (r"Classify: {title}\n{body}", "Classify: {title}\n{body}"),
        ("real\nline", "real\nline"),
        (r"a\tb", "a\tb"),
        (r"C:\\new", r"C:\new"),
        (r"\d+ \x", r"\d+ \x"),
        (r"\@{user}", "@{user}"),
        ("a@b", "a@b"),
    ],
)
@pytest.mark.parametrize("option", ["--template", "--system"])
def test_a_typed_text_has_escapes_for_line_ends(option: str, typed: str, text: str) -> None:
    assert parsed(option, typed) == text


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("Hallo {ä}\n".encode(), "Hallo {ä}"),
        (b"\xef\xbb\xbfone\r\ntwo\r\n", "one\ntwo"),
        (b"one\n\n", "one\n"),
        (rb"as \n it is", r"as \n it is"),
    ],
)
def test_a_file_holds_the_text_without_its_last_line_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, text: str
) -> None:
    (tmp_path / "prompt.txt").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    assert parsed("--template", "@prompt.txt") == text
    assert parsed("--system", f"@{tmp_path}/prompt.txt") == text


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"--template @missing\.txt: No such file or directory"):
        parsed("--template", "@missing.txt")
    with pytest.raises(UsageError, match=r"--system @\.: Is a directory"):
        parsed("--system", "@.")
    Path("latin.txt").write_bytes(b"one\nd\xe9j\xe0")
    with pytest.raises(UsageError, match=r"--template @latin\.txt line 2: byte 0xe9 is not UTF-8"):
        parsed("--template", "@latin.txt")
    Path("large.txt").write_bytes(b"x" * (1024**2 + 1))
    with pytest.raises(UsageError, match="more than 1,048,576 bytes"):
        parsed("--template", "@large.txt")
