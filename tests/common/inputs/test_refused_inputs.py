"""Inputs that are refused as a whole: each with a sentence that names it, before any work."""

import gzip
import io
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UsageError
from common.inputs import find_inputs
from common.own_columns import Keep
from common.tasks import TASKS

FILL = TASKS["fill-mask"]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 440\n"


def refused(*inputs: str | Path, task=FILL, **options) -> str:
    with pytest.raises(UsageError) as caught:
        find_inputs([str(i) for i in inputs], task, **options).check(1000)
    return str(caught.value)


def file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_a_missing_file(tmp_path):
    assert refused(tmp_path / "no.txt") == f"No such file: {tmp_path}/no.txt."


def test_a_directory(tmp_path):
    assert "is a directory; pass the files in it" in refused(tmp_path, format="txt")


def test_an_unreadable_file(tmp_path):
    """Root may read everything, so somebody else has to try."""
    path = file(tmp_path / "a.txt", b"text\n")
    path.chmod(0)
    script = (
        "import os, sys\n"
        "from common.errors import UsageError\nfrom common.tasks import TASKS\n"
        "from common.inputs import find_inputs\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"
        "try: find_inputs([sys.argv[1]], TASKS['fill-mask']).check(9)\n"
        "except UsageError as error: print(error)\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", script, path], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == f"Cannot read {path}: Permission denied.\n"


@pytest.mark.parametrize("name", ["a.docx", "a", "a.jsn", "a.gz"])
def test_an_unknown_extension(tmp_path, name):
    assert "Set its format with --format" in refused(file(tmp_path / name, b"text"))


def test_an_unknown_format():
    assert refused("-", format="xml").startswith("Unknown format 'xml'; expected one of txt,")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", b""),
        ("a.txt", b"\n \r\n\n"),
        ("a.txt", b"\xef\xbb\xbf"),
        ("a.txt.gz", gzip.compress(b"")),
        ("a.jsonl", b"\n\n"),
        ("a.csv", b""),
        ("a.csv", b"id,text\n"),
        ("a.tsv", b"text\n\n\n"),
    ],
)
def test_an_input_without_a_record_is_empty(tmp_path, name, data):
    path = file(tmp_path / name, data)
    assert refused(path) == f"Empty input: {path} contains no records."


def test_a_parquet_without_a_row_is_empty(tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert refused(tmp_path / "a.parquet").startswith("Empty input")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x7fELF\x00\x00\x01", "is binary; expected UTF-8 text (txt)"),
        ("text\n".encode("utf-16"), "iconv -f UTF-16 -t UTF-8"),
        ("텍스트".encode("utf-16"), "iconv -f UTF-16 -t UTF-8"),
        ("text\n".encode("utf-16-le"), "iconv -f UTF-16 -t UTF-8"),
        (gzip.compress(b"\x00\x01"), "is binary"),
        (b"PAR1\x00", "a Parquet file: use --format parquet"),
        (b"PK\x03\x04rest", "an Office document"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"\x28\xb5\x2f\xfdrest", "zstd"),
        (POINTER, "git lfs pull"),
    ],
)
def test_binary_content(tmp_path, data, words):
    assert words in refused(file(tmp_path / "a.txt", data))


def test_a_git_lfs_pointer_instead_of_parquet(tmp_path):
    assert "git lfs pull" in refused(file(tmp_path / "a.parquet", POINTER))


def test_a_gz_that_is_not_gzip(tmp_path):
    assert "is not a gzip file" in refused(file(tmp_path / "a.txt.gz", b"plain text\n"))


def test_a_broken_gzip(tmp_path):
    whole = gzip.compress(os.urandom(100_000).replace(b"\0", b"a").replace(b"\n", b"b"))
    assert "corrupt gzip" in refused(file(tmp_path / "a.txt.gz", whole[:5000]))
    assert "corrupt gzip" in refused(file(tmp_path / "a.txt.gz", b"\x1f\x8b nothing of the kind"))


def test_a_gzip_that_ends_early_is_said_when_it_is_read(tmp_path):
    whole = gzip.compress(b"".join(b"%d\n" % (n * 7919) for n in range(100_000)))
    path = file(tmp_path / "a.txt.gz", whole[: len(whole) // 2])
    with pytest.raises(UsageError, match="corrupt gzip"):
        list(find_inputs([str(path)], FILL).records(1000))


def test_a_parquet_that_is_none(tmp_path):
    assert "is not a Parquet file" in refused(file(tmp_path / "a.parquet", b"text,of,another\nkind,of,file\n"))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_missing_column_is_reported_with_the_existing_ones(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "csv":
        path.write_text("id,title,body\n1,a,b\n")
    else:
        pq.write_table(pa.table({"id": [1], "title": ["a"], "body": ["b"]}), path)
    assert refused(path, column="txt") == f"{path} has no column 'txt' (--column); it has: id, title, body."
    assert "no column 'key' (--id-column)" in refused(path, column="body", id_column="key")
    message = refused(path)
    assert "fill-mask needs text; the columns are: id, title, body" in message
    assert "with --column" in message


def test_a_table_without_all_fields_of_the_task(tmp_path):
    path = file(tmp_path / "a.csv", b"question,passage\nq,p\n")
    assert "needs question + context" in refused(path, task=TASKS["question-answering"])


def test_a_table_with_another_delimiter(tmp_path):
    assert "seems to use another delimiter" in refused(file(tmp_path / "a.csv", b"id;text\n1;a\n"))


def test_a_doubled_column(tmp_path):
    assert "more than one column 'text'" in refused(file(tmp_path / "a.csv", b"text,text\n1,a\n"))


def test_a_header_that_is_not_utf8(tmp_path):
    message = refused(file(tmp_path / "a.csv", "아이디,text\n1,a\n".encode("cp949")))
    assert "The header cannot be read" in message
    assert "line 1: byte 0xbe at position 1" in message


def test_a_header_with_an_open_quote(tmp_path):
    assert "never closed" in refused(file(tmp_path / "a.csv", b'"text\na\nb\n'))


def test_plain_text_has_no_columns(tmp_path):
    path = file(tmp_path / "a.txt", b"text\n")
    assert "--column is for jsonl" in refused(path, column="text")
    assert "--id-column is for jsonl" in refused(path, id_column="id")
    assert "needs question + context, but" in refused(path, task=TASKS["question-answering"])


def test_all_inputs_are_checked(tmp_path):
    good = file(tmp_path / "a.txt", b"text\n")
    assert "b.txt" in refused(good, tmp_path / "b.txt")
    assert "Empty input" in refused(good, file(tmp_path / "c.txt", b""))


def test_standard_input_is_refused_when_it_is_read(monkeypatch):
    for data, words in ((b"", "Empty input: standard input"), (b"a\0b", "standard input is binary")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        inputs = find_inputs(["-"], FILL)
        inputs.check(1000)
        with pytest.raises(UsageError, match=words):
            next(inputs.records(1000))
    assert "only once" in refused("-", "-")


def test_a_named_pipe_is_not_read_by_the_check(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    find_inputs([str(tmp_path / "pipe")], FILL, format="txt").check(1000)


@pytest.mark.parametrize(
    ("name", "data", "keep", "words"),
    [
        ("a.jsonl", b'"x"\n{"text": "y", "output": 1}\n', Keep(None), "line 2: the record has a column 'output'"),
        ("a.jsonl", b'{"output": 1}\n', Keep(None), "line 1: the record has a column 'output' already"),
        ("a.txt", b"x\n", Keep(None, "text"), "has a column 'text' already"),
        ("a.txt", b"x\n", Keep(("stars",)), "no column 'stars' (--keep); it has: text"),
        ("a.png", b"", Keep(None, "image"), "has a column 'image' already"),
        ("a.png", b"", Keep(("stars",)), "no column 'stars' (--keep); it has: image"),
    ],
)
def test_columns_that_cannot_be_kept(tmp_path, name, data, keep, words):
    task = TASKS["image-classification"] if name == "a.png" else FILL
    assert words in refused(file(tmp_path / name, data), task=task, keep=keep)
