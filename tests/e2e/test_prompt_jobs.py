"""Prompts from columns, and chats, through a real queue."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers

from common.redis import keys
from common.redis.keys import JobKeys
from hugqueue import Client
from tests.support import tiny_models
from tests.support.cli_processes import Queue, running_queue
from tests.support.processes import lines

ROWS = [{"title": f"title {n}", "review text": f"text {n}", "stars": n % 5} for n in range(40)]
TEMPLATE = "{title}: {review text}\n({stars})"
EXPECTED = [TEMPLATE.format(**row).upper() for row in ROWS]
QUESTIONS = ["what is the capital of france?", "how many people live in seoul?"]
CHAT = ("--task", "text-generation", "-p", "do_sample=false", "-p", "max_new_tokens=8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prompts")


@pytest.fixture(scope="module")
def queue(folder: Path) -> Iterator[Queue]:
    """A queue whose worker may read this folder: models, and inputs in place."""
    with running_queue(folder, HUGQUEUE_MODEL_ROOTS=str(folder), HUGQUEUE_SHARED=str(folder)) as running:
        yield running


def outputs(text: str) -> list[object]:
    return [row["output"] for row in lines(text)]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_columns_become_prompts_copied_or_in_place(queue: Queue, folder: Path, kind: str) -> None:
    path = folder / f"reviews.{kind}"
    if kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(ROWS[0]))
            writer.writeheader()
            writer.writerows(ROWS)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=15)
    typed = TEMPLATE.replace("\n", r"\n")
    done = queue.run("submit", "--task", "test-echo", str(path), "--template", typed, "--chunk-size", "10", "--wait")
    assert outputs(done.stdout) == EXPECTED
    own = [{name: str(value) if kind == "csv" else value for name, value in row.items()} for row in ROWS]
    assert [{name: row[name] for name in ROWS[0]} for row in lines(done.stdout)] == own
    [job] = queue.server.client.zrange(keys.JOBS, -1, -1)
    payloads = queue.server.client.hvals(JobKeys.of(job.decode()).input)
    assert all((b'"format"' in payload) == (kind != "csv") for payload in payloads)
    assert all(b"review text" not in payload for payload in payloads if kind != "csv")
    assert queue.status(job.decode())["template"] == TEMPLATE
    assert "{title}: {review text} ({stars})" in queue.run("status", job.decode()).stdout


def test_a_key_stands_for_one_template(queue: Queue) -> None:
    path = queue.write("keyed.jsonl", '{"a": "x", "b": "y"}')
    keyed = ("--task", "test-echo", path, "--idempotency-key", "prompt")
    job = queue.submit(*keyed, "--template", "{a}")
    assert queue.submit(*keyed, "--template", "{a}") == job
    assert "whose template is '{a}'" in queue.run("submit", *keyed, "--template", "{b}", status=2).stderr


def test_a_broken_template_is_one_sentence_and_no_job(queue: Queue, folder: Path) -> None:
    path = queue.write("one.jsonl", '{"a": "x"}')
    before = queue.server.client.zcard(keys.JOBS)
    submit = ("submit", "--task", "test-echo", path, "--template")
    assert "(--template); the record has: a." in queue.run(*submit, "{b}", status=2).stderr
    assert queue.run(*submit, "{a", status=2).stderr.startswith("Error: --template: the { at line 1, character 1")
    assert "--template @none.txt: No such file" in queue.run(*submit, "@none.txt", status=2).stderr
    piped = queue.run(*submit[:3], "-", "--format", "jsonl", "--template", "{b}", input='{"a": "x"}\n', status=2)
    assert "standard input line 1: no field 'b'" in piped.stderr
    assert queue.server.client.zcard(keys.JOBS) == before


def test_a_prompt_of_a_file_is_shown_by_a_dry_run(queue: Queue, folder: Path) -> None:
    path = queue.write("two.jsonl", '{"a": "x"}', '{"a": "y"}')
    (folder / "prompt.txt").write_text("Say:\n{a}\n")
    arguments = ("submit", "--task", "test-echo", path, "--template", "@prompt.txt", "--dry-run")
    assert "prompt   Say:\n         x\nprompt   Say:\n         y\n" in queue.run(*arguments).stdout
    assert json.loads(queue.run(*arguments, "--json").stdout)["prompts"] == ["Say:\nx", "Say:\ny"]


def test_questions_are_asked_as_chats(queue: Queue, folder: Path) -> None:
    model = tiny_models.causal_gpt2(folder / "chat")
    path = queue.write("questions.txt", *QUESTIONS)
    pipe = transformers.pipeline("text-generation", model=str(model), device="cpu")
    greedy = {"do_sample": False, "max_new_tokens": 8}
    system = {"role": "system", "content": "you like\ncats"}

    def expected(*before: dict[str, str]) -> list[str]:
        asked = ([*before, {"role": "user", "content": text}] for text in QUESTIONS)
        return [pipe(messages, **greedy)[0]["generated_text"][-1]["content"] for messages in asked]

    raw = [pipe(text, **greedy)[0]["generated_text"] for text in QUESTIONS]
    submit = ("submit", *CHAT, "-m", str(model), path, "--wait")
    assert outputs(queue.run(*submit).stdout) == raw
    assert outputs(queue.run(*submit, "--no-chat").stdout) == raw
    assert outputs(queue.run(*submit, "--chat").stdout) == expected()
    assert outputs(queue.run(*submit, "--system", r"you like\ncats").stdout) == expected(system)
    with Client(queue.server.url) as client:
        rows = [{"question": text} for text in QUESTIONS]
        job = client.submit(
            task="text-generation", model=str(model), records=rows, template="{question}", chat=True, params=greedy
        )
        job.wait(60)
        assert [row.output for row in job.results()] == expected()


def test_a_model_without_a_chat_template_fails_the_job_and_says_what_to_do(queue: Queue, folder: Path) -> None:
    model = tiny_models.causal_gpt2(folder / "raw", chat=False)
    path = queue.write("questions.txt", *QUESTIONS)
    done = queue.run("submit", *CHAT, "-m", str(model), path, "--chat", "--wait", status=1)
    assert "no_chat_template" in done.stderr
    assert "--no-chat" in done.stderr
