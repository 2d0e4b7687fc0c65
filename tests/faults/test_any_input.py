"""Bad input by the hundred: never a traceback, never a dead worker, and every good record has its result."""

import codecs
import csv
import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.fault_jobs import LONG
from tests.support.processes import RedisServer, Shell, Workers, environment

SEEDS = [1, *(pytest.param(seed, marks=pytest.mark.faults) for seed in range(2, 7))]
#: Numbers of good and bad lines in the input of each format.
GOOD, BAD = 300, 500
LETTERS = "abc XYZ.,;\"'\\/{}[]:\t\x01\x0b\x7f\x85\u2028\u200b가ß한\U0001f600\ufeff\u0301"
LONG_TEXT = "good " + "x" * 10_000_000
TOO_LONG = b"x" * 17_000_000


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shell, Workers]]:
    """One worker for all of this file: it is to outlive everything."""
    directory = tmp_path_factory.mktemp("any-input")
    server = RedisServer(directory / "redis").start()
    environ = environment(directory, server.url, HUGQUEUE_REAP="0.5")
    workers = Workers(environ, directory / "workers.log").start()
    pids = workers.celery().pid, workers.device().pid
    try:
        yield Shell(environ, directory), workers
        assert (workers.celery().pid, workers.device().pid) == pids
    finally:
        workers.kill()
        server.kill()


class Dice(random.Random):
    """Random input of all kinds."""

    def text(self) -> str:
        """A text of one line that is not blank, and the same with CR LF behind it."""
        return "good " + "".join(self.choices(LETTERS, k=self.randrange(30))) + "."

    def bytes_of_a_line(self, without: bytes = b"") -> bytes:
        """Random bytes; no NUL, by which a whole file is found to be binary."""
        wanted = [byte for byte in range(1, 256) if byte not in b"\n" + without]
        return bytes(self.choices(wanted, k=self.randrange(40)))

    def value(self, depth: int = 0) -> object:
        """A JSON value, or what Python takes for one."""
        plain: list[object] = [None, True, 7, -0.0, 10**40, 1e308, float("nan"), float("inf"), "", "\ud800", "가" * 50]
        if depth > 3 or self.random() < 0.6:
            return self.choice(plain)
        if self.random() < 0.5:
            return [self.value(depth + 1) for _ in range(self.randrange(4))]
        return {
            self.choice(["text", "id", "", "가", "\ud800"]): self.value(depth + 1) for _ in range(self.randrange(4))
        }

    def broken_json(self) -> bytes:
        """A line that may be a record, and mostly is none."""
        whole = json.dumps(self.choice([self.value(), {"id": self.value(), "text": self.value()}])).encode()
        cut = self.randrange(len(whole) + 1)
        fixed = [b"[" * 100_000, b'{"text": ' * 5_000, b'{"text": 1e999}', b"{}", b'{"text": ' + b"9" * 5_000 + b"}"]
        ways = [whole, whole[:cut], whole[:cut] + self.bytes_of_a_line() + whole[cut:], self.bytes_of_a_line()]
        return self.choice([*ways, self.choice(fixed)])


Good = dict[str, str]  #: id, as JSON -> text


def text_file(dice: Dice) -> tuple[bytes, Good]:
    texts: list[bytes | str] = [dice.text() for _ in range(GOOD)]
    texts += [dice.bytes_of_a_line() + b"\xff" for _ in range(BAD)] + [b"", b"  \t", TOO_LONG, LONG_TEXT]
    dice.shuffle(texts)
    good = {str(number): text for number, text in enumerate(texts) if isinstance(text, str)}
    raw = [text.encode() if isinstance(text, str) else text for text in texts]
    return codecs.BOM_UTF8 + b"".join(line + dice.choice([b"\n", b"\r\n"]) for line in raw), good


def json_file(dice: Dice) -> tuple[bytes, Good]:
    good = {f'"good-{number}"': dice.text() + dice.choice(["", "\ud800", "\0"]) for number in range(GOOD)} | {
        "-1": LONG_TEXT
    }
    raw = [f'{{"id": {id_}, "text": {json.dumps(text)}}}'.encode() for id_, text in good.items()]
    raw += [dice.broken_json() for _ in range(BAD)] + [b'{"text": "' + TOO_LONG + b'"}']
    dice.shuffle(raw)
    return b"".join(line + dice.choice([b"\n", b"\r\n"]) for line in raw), good


def csv_file(dice: Dice) -> tuple[bytes, Good]:
    good = {f'"good-{number}"': dice.text() + dice.choice(["", "\nsecond", '"']) for number in range(GOOD)}
    good['"long"'] = LONG_TEXT
    raw = [_row(json.loads(id_), text) for id_, text in good.items()]
    # A quote that opens and does not close takes in what follows: its row is broken, and it has to be told.
    raw += [dice.bytes_of_a_line(without=b'"\r') + b"\n" for _ in range(BAD)] + [TOO_LONG + b"\n", b",,,,,\n", b"\n"]
    dice.shuffle(raw)
    return b"id,text\r\n" + b"".join(raw) + b'never,"closed', good


def _row(*cells: str) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue().encode()


def tsv_file(dice: Dice) -> tuple[bytes, Good]:
    quotes = ["", '"', ' "half']  # characters like any other; nothing can hold a tab or a line end
    good = {f'"good-{number}"': dice.choice(quotes) + " ".join(dice.text().split()) + "." for number in range(GOOD)}
    good['"long"'] = LONG_TEXT
    raw = [f"{json.loads(id_)}\t{text}\n".encode() for id_, text in good.items()]
    raw += [dice.bytes_of_a_line(without=b"\r") + b"\n" for _ in range(BAD)] + [TOO_LONG + b"\n", b"\t\t\t\n", b"\n"]
    dice.shuffle(raw)
    return b"id\ttext\r\n" + b"".join(raw) + b"never\t", good


def parquet_file(dice: Dice) -> tuple[bytes, Good]:
    good = {f'"good-{number}"': dice.text() for number in range(GOOD)} | {'"long"': LONG_TEXT}
    rows: list[tuple[str | None, str | None]] = [(json.loads(id_), text) for id_, text in good.items()]
    rows += [(dice.choice([None, "", "0"]), dice.choice([None, TOO_LONG.decode()])) for _ in range(2)]
    rows += [(None, None)] * BAD
    dice.shuffle(rows)
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": [id_ for id_, _ in rows], "text": [text for _, text in rows]}), sink)
    return sink.getvalue(), good


MAKE: dict[str, Callable[[Dice], tuple[bytes, Good]]] = {
    "txt": text_file,
    "jsonl": json_file,
    "csv": csv_file,
    "tsv": tsv_file,
    "parquet": parquet_file,
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", MAKE)
def test_every_good_record_among_hundreds_of_bad_ones_has_its_result(
    queue: tuple[Shell, Workers], tmp_path: Path, kind: str, seed: int
) -> None:
    shell, _ = queue
    data, good = MAKE[kind](Dice(seed))
    source, output = tmp_path / f"in.{kind}", tmp_path / "out.jsonl"
    source.write_bytes(data)
    shell.run("submit", "--task", "test-echo", str(source), "-o", str(output), status=3, seconds=LONG)
    rows = [json.loads(line) for line in output.read_bytes().splitlines()]  # U+2028 ends no line of bytes
    assert all(("output" in row) != ("error_code" in row) for row in rows)
    found = {json.dumps(row["id"]): row["output"] for row in rows if "output" in row}
    assert {id_: found.get(id_) for id_ in good} == {id_: text.upper() for id_, text in good.items()}
    assert sum("error_code" in row for row in rows) > BAD // 2


BYTES = random.Random(5).randbytes(5000)
WHOLE = {
    "empty": b"",
    "blank": b"\n \r\n\t\n",
    "a mark alone": codecs.BOM_UTF8,
    "UTF-16 with a mark": "text\na\n".encode("utf-16"),
    "UTF-16 without": "text\na\n".encode("utf-16-le"),
    "random bytes": b"\0" + BYTES,
    "half a gzip": b"\x1f\x8b\x08\0" + BYTES,
    "a Parquet file that is none": b"PAR1" + BYTES + b"PAR1",
}


@pytest.mark.parametrize("what", WHOLE)
def test_a_file_that_is_not_text_is_refused_in_one_sentence(queue: tuple[Shell, Workers], what: str) -> None:
    shell, _ = queue
    done = shell.run("submit", "--task", "test-echo", "-", "--wait", input=WHOLE[what], status=2)
    assert done.stderr.startswith("Error: ") and len(done.stderr) < 500


def test_words_on_the_command_line_that_are_not_utf8_do_no_harm(queue: tuple[Shell, Workers], tmp_path: Path) -> None:
    shell, _ = queue
    (tmp_path / "odd \udcff.txt").write_text("a\nb\n")
    source, odd = str(tmp_path / "odd \udcff.txt"), "\udcff"
    job = shell.submit("--task", "test-echo", source, "-p", f"x={odd}")
    shell.run("wait", job)
    assert [row["output"] for row in shell.results(job)] == ["A", "B"]
    assert "odd \N{REPLACEMENT CHARACTER}.txt" in shell.run("status", job).stdout
    for option in ("--model", "--revision", "--name"):
        assert "'\\udcff'" in shell.run("submit", "--task", "test-echo", source, option, odd, status=2).stderr
    failed = shell.submit("--task", "test-load", source, "-p", f"load_error={odd}")
    shell.run("wait", failed, status=1)
    assert shell.status(failed)["error"] == {"code": "test_load", "message": "\N{REPLACEMENT CHARACTER}"}
