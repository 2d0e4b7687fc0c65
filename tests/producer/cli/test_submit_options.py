"""Options of `submit` that choose what is run and in which numbers; hints for those that other tools have."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import torch
from transformers import pipeline

from common.errors import UsageError
from producer.cli.grouped_command import HINTS, GroupedCommand
from producer.cli.main import COMMON_OPTIONS, main
from producer.client import Client
from tests.support.cli_processes import Queue, running_queue
from tests.support.processes import DEMO_MODEL, lines

TEXTS = ["The capital of France is [MASK].", "The capital of Germany is [MASK].", "Monday comes before [MASK]."]
FILL = ("--task", "fill-mask", "-m", str(DEMO_MODEL), "-p", "top_k=2")


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queue]:
    """A queue whose worker may read the demo model."""
    with running_queue(tmp_path_factory.mktemp("queue"), HUGQUEUE_MODEL_ROOTS=str(DEMO_MODEL.parent)) as running:
        yield running


def test_each_job_computes_in_its_own_dtype_as_transformers_does(queue: Queue) -> None:
    source = queue.write("in.txt", *TEXTS)
    seen = {}
    # One worker: the second job must not take the model of the first. Half precision has steps of 0.004 below 1.
    for dtype, tolerance in (("bfloat16", 4e-3), ("float32", 1e-5), ("bfloat16", 4e-3)):
        job = queue.submit(*FILL, source, "--dtype", dtype)
        queue.run("wait", job)
        assert queue.status(job)["ran_on"]["dtype"] == dtype
        expected = pipeline("fill-mask", model=str(DEMO_MODEL), top_k=2, dtype=getattr(torch, dtype), device="cpu")
        for row, answers in zip(queue.results(job), expected(TEXTS), strict=True):
            assert [answer["token_str"] for answer in row["output"]] == [answer["token_str"] for answer in answers]
            scores = [answer["score"] for answer in answers]
            assert [answer["score"] for answer in row["output"]] == pytest.approx(scores, abs=tolerance)
            seen.setdefault(dtype, row["output"][0]["score"])
    assert seen["bfloat16"] != seen["float32"]


def test_a_dtype_is_set_once_and_is_a_known_one(queue: Queue) -> None:
    source = queue.write("in.txt", *TEXTS)
    assert "use only one" in queue.run("submit", *FILL, source, "--dtype", "int8", "-p", "dtype=int8", status=2).stderr
    assert "float64" in queue.run("submit", *FILL, source, "--dtype", "float64", status=2).stderr
    with Client(queue.server.url) as client, pytest.raises(UsageError, match="dtype"):
        client.submit(task="fill-mask", records=["a [MASK]"], model=str(DEMO_MODEL), dtype="float64")


def test_a_limit_takes_the_first_records(queue: Queue) -> None:
    source = queue.write("in.txt", *map(str, range(50)))
    done = queue.run("submit", "--task", "test-echo", source, "--limit", "3", "--chunk-size", "2", "--wait")
    assert [row["output"] for row in lines(done.stdout)] == ["0", "1", "2"]
    assert "3 records for test-echo" in done.stderr
    report = queue.run("submit", "--task", "test-echo", source, "--limit", "70", "--dry-run").stdout
    assert "records  50\n" in report
    for wrong in ("0", "-1"):
        assert (
            "--limit: expected" in queue.run("submit", "--task", "test-echo", source, "--limit", wrong, status=2).stderr
        )
    with Client(queue.server.url) as client:
        records = (f"{number} comes before [MASK]." for number in range(50))
        job = client.submit(task="fill-mask", records=records, model=str(DEMO_MODEL), limit=2)
        assert job.wait().counts.succeeded == 2


def test_a_limit_is_part_of_what_a_key_stands_for(queue: Queue) -> None:
    source = queue.write("in.txt", *map(str, range(50)))
    keyed = ("--task", "test-echo", source, "--idempotency-key", "limited")
    job = queue.submit(*keyed, "--limit", "3")
    assert queue.submit(*keyed, "--limit", "3") == job
    assert "whose limit is 3" in queue.run("submit", *keyed, "--limit", "4", status=2).stderr


def test_a_limit_holds_for_inputs_that_workers_could_read_in_place(tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("".join(f"{number}\n" for number in range(50)))
    with running_queue(tmp_path / "queue", HUGQUEUE_SHARED=str(tmp_path)) as queue:
        done = queue.run("submit", "--task", "test-echo", str(source), "--limit", "3", "--wait")
    assert [row["output"] for row in lines(done.stdout)] == ["0", "1", "2"]


# Help and hints


@pytest.mark.parametrize("name", ["submit", "finetune"])
def test_help_has_every_option_in_one_group_and_marks_the_required(queue: Queue, name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert isinstance(command, GroupedCommand)
    text = queue.run(name, "--help").stdout
    options = [option for option in command.params if isinstance(option, click.Option) and option not in COMMON_OPTIONS]
    assert all(re.search(rf"^{getattr(option, 'heading', 'None')}:$", text, re.MULTILINE) for option in options)
    assert "[required" in text


@pytest.mark.parametrize(("name", "option"), [(name, option) for name, hints in HINTS.items() for option in hints])
def test_hints_name_only_options_that_are_there(queue: Queue, name: str, option: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    known = {word for parameter in command.params for word in parameter.opts}
    assert option not in known
    hint = HINTS[name][option]
    if "`producer" not in hint:
        assert set(re.findall(r"(?<!\w)--?[a-z][a-z-]*", hint)) <= known, hint


def test_an_option_of_another_tool_gets_a_true_hint(queue: Queue) -> None:
    source = queue.write("in.txt", "x")
    said = queue.run("submit", "--task", "test-echo", source, "--batch-size", "8", status=2).stderr
    assert "No such option: --batch-size" in said and "--chunk-size" in said
    said = queue.run("finetune", source, "-m", "x", "--lr", "1", status=2).stderr
    assert "Did you mean --learning-rate?" in said
