"""Jobs from the Hub to the Hub, against a server that stands in for it: commits, interruptions, refusals."""

import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.redis import keys
from common.redis.keys import JobKeys
from tests.support.cli_processes import Queue, run_without
from tests.support.hub_repositories import Fault, HubRepositories, Repository
from tests.support.processes import PLUGINS, ROOT, Shell, wait_until

TEXTS = [f"text {number}" for number in range(60)]
ECHO = ("submit", "--task", "test-echo", "hf:org/reviews", "--column", "text", "--chunk-size", "10")


def table(texts: list[str]) -> bytes:
    sink = io.BytesIO()
    stars = pa.array([len(text) for text in texts], pa.int8())
    pq.write_table(pa.table({"text": texts, "stars": stars}), sink)
    return sink.getvalue()


@pytest.fixture
def hub() -> Iterator[HubRepositories]:
    with HubRepositories() as found:
        files = {"data/train-00000-of-00002.parquet": table(TEXTS[:25])}
        found.add_dataset("org/reviews", files | {"data/train-00001-of-00002.parquet": table(TEXTS[25:])})
        yield found


@pytest.fixture
def user(hub: HubRepositories, queue: Queue, tmp_path: Path) -> Shell:
    """`producer` of the user maria."""
    return Shell(queue.environ | hub.environ(), tmp_path)


def outputs(hub: HubRepositories, name: str = "maria/labels", split: str = "train") -> list[str]:
    return [row["output"] for row in hub.rows(name, split)]


def made(hub: HubRepositories, name: str = "maria/labels") -> list[str]:
    """The messages of our commits."""
    return [commit.message for commit in hub.datasets[name].commits if "results of job" in commit.message]


def whole(hub: HubRepositories) -> None:
    """Check that every record is there once, in order."""
    assert outputs(hub) == [text.upper() for text in TEXTS]


def test_a_job_goes_from_a_dataset_to_a_dataset(
    hub: HubRepositories, user: Shell, queue: Queue, tmp_path: Path
) -> None:
    done = user.run(*ECHO, "-o", "hf:maria/labels")
    whole(hub)
    assert f"60 records are in {hub.url}/datasets/maria/labels (6 files of the split train)" in done.stderr
    repository = hub.datasets["maria/labels"]
    assert repository.private
    assert sorted(file for file in repository.head.files if file.startswith("data/"))[:2] == [
        "data/train-00000.parquet",
        "data/train-00001.parquet",
    ]
    card = repository.head.files["README.md"].decode()
    assert "| Records | 60 of 60, of which 0 failed |" in card
    assert "`hf:org/reviews`" in card
    for path, data in repository.head.files.items():
        (tmp_path / "copy" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / path).write_bytes(data)
    read = datasets.load_dataset(str(tmp_path / "copy"), split="train", cache_dir=str(tmp_path / "cache"))
    assert read["output"][:] == [text.upper() for text in TEXTS]
    assert read["text"][:] == TEXTS
    assert read.features["stars"].dtype == "int8"
    for key in queue.server.client.scan_iter():  # the token stays with the producer
        assert b"hf_maria" not in queue.server.client.dump(key)


def test_a_public_dataset_and_a_split_are_asked_for(hub: HubRepositories, user: Shell) -> None:
    user.run(*ECHO, "-o", "hf:lab/labels:small", "--public", "--limit", "5")
    assert not hub.datasets["lab/labels"].private
    assert outputs(hub, "lab/labels", "small") == [text.upper() for text in TEXTS[:5]]
    user.run(*ECHO, "-o", "hf:lab/labels", "--limit", "10")
    assert outputs(hub, "lab/labels", "small") == [text.upper() for text in TEXTS[:5]]
    assert len(outputs(hub, "lab/labels")) == 10


def test_shards_hold_several_chunks(hub: HubRepositories, user: Shell) -> None:
    del user.environ["HUGQUEUE_HUB_SHARD_BYTES"]
    user.run(*ECHO, "-o", "hf:maria/labels")
    whole(hub)
    assert len(hub.stored) == 1
    assert len(made(hub)) == 1


def test_a_killed_command_goes_on_with_few_commits(hub: HubRepositories, user: Shell, tmp_path: Path) -> None:
    user.environ |= hub.environ(seconds=1.0)
    until = tmp_path / "go on"
    waiting = ("-p", f"until={until}", "-p", f"until_text={TEXTS[35]}")  # the fourth chunk
    submit = ("submit", "--task", "test-wait", *ECHO[3:], *waiting, "--idempotency-key", "k", "-o", "hf:maria/labels")
    with user.popen(*submit) as first:
        wait_until(lambda: "maria/labels" in hub.datasets and len(outputs(hub)) == 30, 60, "half of the job")
        first.send_signal(signal.SIGKILL)
    before = hub.datasets["maria/labels"].head.files
    until.touch()
    again = user.run(*submit)
    assert "hf:maria/labels holds 30 records of job" in again.stderr
    whole(hub)
    head = hub.datasets["maria/labels"].head.files
    assert all(head[path] == before[path] for path in before if path.startswith("data/"))
    times = [commit.at for commit in hub.datasets["maria/labels"].commits if "results of job" in commit.message]
    assert len(times) > 2
    assert all(later - earlier > 0.9 for earlier, later in pairwise(times))
    files = [path for commit in hub.datasets["maria/labels"].commits for path in commit.changed if "data/" in path]
    assert len(files) == len(set(files)) == 6


def test_a_command_killed_before_the_answer_to_its_commit_goes_on(hub: HubRepositories, user: Shell) -> None:
    hub.hold.clear()
    with user.popen(*ECHO, "-o", "hf:maria/labels") as first:
        wait_until(lambda: "maria/labels" in hub.datasets and made(hub), 60, "a commit")
        first.send_signal(signal.SIGKILL)
    hub.hold.set()
    user.run("results", "@last", "-o", "hf:maria/labels")
    whole(hub)
    commits = made(hub)
    assert len(commits) == len(set(commits))
    user.run("results", "@last", "-o", "hf:maria/labels")
    assert made(hub) == commits  # nothing was left to do


def test_rate_limits_faults_and_lost_answers_are_retried(hub: HubRepositories, user: Shell) -> None:
    hub.faults += [
        Fault("commit", 429, 2, {"Retry-After": "0.1"}),
        Fault("commit", 503),
        Fault("whoami", 502),
        Fault("preupload", 429, headers={"Retry-After": "0"}),
        Fault("commit", 504, after=True),
    ]
    user.run(*ECHO, "-o", "hf:maria/labels", "--limit", "20")
    assert outputs(hub) == [text.upper() for text in TEXTS[:20]]
    assert not any(fault.times for fault in hub.faults)
    assert len(made(hub)) == len(set(made(hub)))


def test_a_commit_that_came_first_is_kept(hub: HubRepositories, user: Shell) -> None:

    def edit(repository: Repository) -> None:
        repository.add({"README.md": b"---\nlicense: mit\n---\n# Mine\n", "notes.txt": b"hello"})

    hub.interfere.append(edit)
    user.run(*ECHO, "-o", "hf:maria/labels")
    whole(hub)
    card = hub.datasets["maria/labels"].head.files["README.md"].decode()
    assert "license: mit" in card and "# Mine" in card and "## Split train" in card
    assert hub.datasets["maria/labels"].head.files["notes.txt"] == b"hello"


def test_failed_records_that_a_retry_replaces_are_written_again(
    hub: HubRepositories, user: Shell, tmp_path: Path
) -> None:
    flag = tmp_path / "fails"
    flag.touch()
    failing = ("-p", f"fail={TEXTS[7]}", "-p", f"fail_while={flag}")
    user.run(*ECHO, *failing, "-o", "hf:maria/labels", status=3)
    assert [row["error_code"] for row in hub.rows("maria/labels")][7] == "test_failure"
    assert "of which 1 failed" in hub.datasets["maria/labels"].head.files["README.md"].decode()
    flag.unlink()
    before = hub.datasets["maria/labels"].head
    user.run("retry", "@last", "-o", "hf:maria/labels")
    whole(hub)
    changed = [path for path in hub.datasets["maria/labels"].head.changed if path.startswith("data/")]
    assert changed == ["data/train-00000.parquet"]
    assert set(hub.datasets["maria/labels"].head.files) == set(before.files)


def test_a_file_that_was_deleted_is_written_again(hub: HubRepositories, user: Shell) -> None:
    user.run(*ECHO, "-o", "hf:maria/labels")
    repository = hub.datasets["maria/labels"]
    left = {path: data for path, data in repository.head.files.items() if path != "data/train-00000.parquet"}
    repository.commits.append(replace(repository.head, sha="0" * 40, message="delete a file", files=left))
    user.run("results", "@last", "-o", "hf:maria/labels")
    whole(hub)


def test_a_cancelled_job_leaves_what_was_done_in_order(hub: HubRepositories, user: Shell, tmp_path: Path) -> None:
    until = tmp_path / "go on"
    job = user.submit("--task", "test-wait", *ECHO[3:], "--no-wait", "-p", f"until={until}")
    with user.popen("results", job, "-o", "hf:maria/labels") as command:
        user.run("cancel", job)
        _, told = command.communicate(timeout=60)
    assert command.returncode == 1
    assert f"After `producer retry {job}`, `producer results {job} -o hf:maria/labels` continues" in told
    until.touch()
    user.run("retry", job, "-o", "hf:maria/labels")
    whole(hub)


def test_columns_that_later_records_widen_are_the_same_in_all_files(
    hub: HubRepositories, user: Shell, tmp_path: Path
) -> None:
    rows = [{"text": "a", "n": 1}] * 10 + [{"text": "b", "n": 2.5}] * 10 + [{"text": "c", "n": 3, "more": [1]}] * 10
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    user.run("submit", "--task", "test-echo", "in.jsonl", "--chunk-size", "10", "-o", "hf:maria/labels")
    found = hub.rows("maria/labels")
    assert [{key: row[key] for key in ("text", "n", "more")} for row in found] == [
        {"text": row["text"], "n": float(row["n"]), "more": row.get("more")} for row in rows
    ]
    files = hub.datasets["maria/labels"].head.files
    shards = [files[path] for path in files if path.startswith("data/")]
    assert len({str(pq.read_schema(io.BytesIO(shard))) for shard in shards}) == 1


@pytest.mark.parametrize("lost", ["input", "output"])
def test_lost_results_are_not_uploaded(lost: str, hub: HubRepositories, queue: Queue, user: Shell) -> None:
    done = user.run(*ECHO, "--wait", "--json")
    assert len(done.stdout.splitlines()) == 60
    job = json.loads(user.run("status", "@last", "--json").stdout)["id"]
    queue.server.client.delete(getattr(JobKeys.of(job), lost))
    told = user.run("results", job, "-o", "hf:maria/labels", status=1).stderr
    assert "results_lost" in told
    assert made(hub) == []


REFUSED = {
    "no token": (None, "hf:maria/labels", "writing to the Hub needs a token: set HF_TOKEN"),
    "unknown token": ("hf_unknown", "hf:maria/labels", "the Hub does not accept this token"),
    "read token": ("hf_reader", "hf:maria/labels", "this token of maria may only read"),
    "someone else's": ("hf_maria", "hf:paul/labels", "it writes for maria, lab, not for paul"),
    "only read there": ("hf_maria", "hf:school/labels", "it writes for maria, lab, not for school"),
    "not writable": ("hf_maria", "hf:org/reviews:labels", "this token must not write there"),
    "gated": ("hf_maria", "hf:org/gated", "this token must not write there"),
    "private": ("hf_maria", "hf:org/private", "does not exist (or may not be seen), and this token cannot create it"),
    "split there": ("hf_maria", "hf:maria/full", "has a split 'train' already, files of something else (train.csv)"),
    "split declared": ("hf_maria", "hf:maria/carded:mine", "has a split 'mine' already"),
    "damaged card": ("hf_maria", "hf:maria/damaged", "README.md: configs: expected a list"),
    "damaged manifest": ("hf_maria", "hf:maria/broken", ".hugqueue/train.json is damaged"),
}


@pytest.mark.parametrize(("token", "output", "told"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_written_is_refused_before_any_work(
    token: str | None, output: str, told: str, hub: HubRepositories, user: Shell, queue: Queue
) -> None:
    hub.add_dataset("org/gated", {"a.csv": b"x\n"}, gated=True)
    hub.add_dataset("org/private", {"a.csv": b"x\n"}, private=True)
    hub.add_dataset("maria/full", {"train.csv": b"text\nx\n"})
    hub.add_dataset("maria/damaged", {"README.md": b"---\nconfigs: x\n---\n"})
    hub.add_dataset("maria/broken", {".hugqueue/train.json": b"{}"})
    declared = b"---\nconfigs: [{config_name: a, data_files: [{split: mine, path: x.csv}]}]\n---\n"
    hub.add_dataset("maria/carded", {"README.md": declared, "x.csv": b"x\n"})
    before = {name: len(repository.commits) for name, repository in hub.datasets.items()}
    user.environ.pop("HF_TOKEN")
    user.environ |= hub.environ(token)
    (user.directory / "in.txt").write_text("a\n")
    jobs = queue.server.client.zcard(keys.JOBS)
    done = user.run("submit", "--task", "test-echo", "in.txt", "-o", output, status=2)
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert str(token) not in done.stderr
    assert queue.server.client.zcard(keys.JOBS) == jobs
    assert {name: len(repository.commits) for name, repository in hub.datasets.items()} == before


def test_a_split_of_another_job_is_refused(hub: HubRepositories, user: Shell, queue: Queue) -> None:
    user.run(*ECHO, "-o", "hf:maria/labels", "--limit", "20")
    job = json.loads(user.run("status", "@last", "--json").stdout)["id"]
    jobs = queue.server.client.zcard(keys.JOBS)
    for more in ((), ("--idempotency-key", "new")):
        done = user.run(*ECHO, *more, "-o", "hf:maria/labels", status=2)
        assert f"has a split 'train' already, results of job {job} (data/train-00000.parquet" in done.stderr
        assert "-o hf:maria/labels:train_2" in done.stderr
    assert queue.server.client.zcard(keys.JOBS) == jobs
    manifest = json.loads(hub.datasets["maria/labels"].head.files[".hugqueue/train.json"])
    assert [(shard["first"], shard["end"]) for shard in manifest["shards"]] == [(0, 1), (1, 2)]


def test_a_dry_run_checks_the_dataset_and_creates_nothing(hub: HubRepositories, user: Shell) -> None:
    user.run(*ECHO, "-o", "hf:maria/labels", "--dry-run")
    assert "maria/labels" not in hub.datasets


def test_not_waiting_is_refused(hub: HubRepositories, user: Shell) -> None:
    done = user.run(*ECHO, "-o", "hf:maria/labels", "--no-wait", status=2)
    assert "--no-wait: hf:maria/labels is written by this command" in done.stderr


PUSH = """
import json, sys
from hugqueue import Client, UsageError
with Client() as client:
    job = client.submit(task="test-echo", records="hf:org/reviews", column="text", chunk_size=10)
    told = []
    print(json.dumps([job.push_to_hub("maria/labels", split="small", notify=told.append), told, str(job.status())]))
    for repo, options in (("labels", {}), ("maria/labels", {"split": "a-b"}), ("paul/labels", {})):
        try:
            job.push_to_hub(repo, **options)
        except UsageError as error:
            print(json.dumps(str(error)))
    try:
        client.submit(task="test-echo", records=["a"], output="hf:maria/labels")
    except UsageError as error:
        print(json.dumps(str(error)))
"""


def test_python_pushes_a_job(hub: HubRepositories, user: Shell) -> None:
    options = {"env": user.environ | {"PYTHONPATH": f"{PLUGINS}:{ROOT}"}, "capture_output": True, "timeout": 120}
    done = subprocess.run([sys.executable, "-c", PUSH], **options, check=True)
    (url, told, status), *refused = [json.loads(line) for line in done.stdout.splitlines()]
    assert (url, status) == (f"{hub.url}/datasets/maria/labels", "completed")
    assert told[-1] == "60 of 60 records are in hf:maria/labels:small"
    assert outputs(hub, split="small") == [text.upper() for text in TEXTS]
    for found, words in zip(
        refused, ("names no dataset", "a split is named by", "cannot create it", "`job.push_to_hub(...)`"), strict=True
    ):
        assert words in found


def test_without_the_library_of_the_hub_its_extra_is_named(hub: HubRepositories, user: Shell, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a\n")
    environ = {name: value for name, value in user.environ.items() if name != "PYTHONPATH"}
    submit = ("submit", "--task", "fill-mask", "in.txt", "-o", "hf:maria/labels")
    told = run_without(("huggingface_hub",), tmp_path, environ, *submit)
    assert "Writing to the Hub needs huggingface-hub: " in told
    assert "[hub]" in told
