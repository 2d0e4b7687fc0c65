"""Jobs take turns: a small one between those of a large one, high before low, and two models that do not fit together
without loading them for every chunk. Small chunks share a turn.
"""

from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest

from common.broker.app import make_app
from common.queue.heartbeats import live_workers
from common.redis.keys import CELERY_PREFIX
from common.settings import Settings
from tests.support.processes import RedisServer, Shell, Workers, wait_until

StartWorkers = Callable[..., Workers]


def _model(parent: Path, name: str) -> str:
    (parent / name).mkdir(parents=True)
    (parent / name / "config.json").write_text("{}")
    (parent / name / "model.safetensors").write_bytes(bytes(10))
    return str(parent / name)


def _texts(directory: Path, name: str, count: int) -> str:
    path = directory / f"{name}.txt"
    path.write_text("".join(f"{name} {number}\n" for number in range(count)))
    return str(path)


def test_two_models_that_do_not_fit_together_are_not_loaded_per_chunk(
    shell: Shell, start_workers: StartWorkers, tmp_path: Path
) -> None:
    chunks, loads, ran = 120, tmp_path / "loads", tmp_path / "ran"
    options = ("--chunk-size", "1", "-p", "batch_seconds=0.03", "-p", f"load_log={loads}", "-p", f"text_log={ran}")
    jobs = [
        shell.submit("--task", "test-large", _texts(tmp_path, name, chunks), "-m", model, *options)
        for name, model in ((name, _model(tmp_path / "models", name)) for name in ("one", "two"))
    ]
    start_workers(HUGQUEUE_MODEL_ROOTS=str(tmp_path / "models"))
    shell.run("wait", *jobs)
    turns = [name for name, _ in groupby(ran.read_text().splitlines(), lambda text: text.split()[0])]
    assert len(ran.read_text().splitlines()) == 2 * chunks
    assert len(turns) > 2, "neither waited for the end of the other"
    assert len(loads.read_text().splitlines()) < chunks / 6


def test_a_small_job_does_not_wait_behind_a_large_one(
    shell: Shell, start_workers: StartWorkers, tmp_path: Path
) -> None:
    start_workers()
    options = ("--task", "test-wait", "-p", "seconds=0.05", "-p", f"log={tmp_path / 'log'}")
    large = shell.submit(*options, _texts(tmp_path, "large", 2000), "--chunk-size", "1")
    wait_until(lambda: shell.status(large)["counts"]["done"], 60)
    small = shell.submit(*options, _texts(tmp_path, "small", 8), "--chunk-size", "4")
    shell.run("wait", small)
    shell.run("cancel", large)
    ran = [line.split()[0] for line in (tmp_path / "log").read_text().splitlines()]
    assert ran[ran.index("small") :][:20].count("small") == 8, "its two chunks come next, whatever else waits"
    assert ran.count("large") < 2000


def test_a_ticket_goes_on_with_small_chunks(
    shell: Shell, start_workers: StartWorkers, server: RedisServer, tmp_path: Path
) -> None:
    start_workers()
    job = shell.submit("--task", "test-echo", _texts(tmp_path, "texts", 300), "--chunk-size", "1")
    shell.run("wait", job)
    assert shell.status(job)["counts"]["succeeded"] == 300
    with make_app(Settings(broker_url=server.url)) as app:
        [worker] = app.control.inspect(limit=1, timeout=30).stats().values()
    assert worker["total"]["hugqueue.test-echo"] < 300


def test_a_ticket_in_the_wrong_queue_is_moved_and_blocks_no_training(
    shell: Shell, start_workers: StartWorkers, server: RedisServer, tmp_path: Path
) -> None:
    job = shell.submit("--task", "test-echo", _texts(tmp_path, "texts", 4))
    own, wrong = (f"{CELERY_PREFIX}{queue}\x06\x163" for queue in ("any", "train"))  # kombu's lists, normal priority
    assert server.client.lmove(own, wrong)
    start_workers("--train", HUGQUEUE_MODELS_URL=str(tmp_path / "models"))
    wait_until(lambda: server.client.llen(own), 30, "the ticket is where it belongs")
    start_workers()
    shell.run("wait", job)


# On a busy machine the first worker may take longer than the seconds for which the other one defers.
@pytest.mark.faults
def test_work_goes_first_to_the_worker_that_has_the_model(
    shell: Shell, start_workers: StartWorkers, server: RedisServer, tmp_path: Path
) -> None:
    loads, model = tmp_path / "loads", _model(tmp_path / "models", "one")
    source = _texts(tmp_path, "texts", 4)
    options = ("--task", "test-large", source, "-m", model, "--chunk-size", "1", "-p", f"load_log={loads}", "--wait")
    for _ in range(2):
        start_workers(HUGQUEUE_MODEL_ROOTS=str(tmp_path / "models"))
        for _ in range(3):
            shell.run("submit", *options)
        wait_until(lambda: any(worker.models for worker in live_workers(server.client)), 30, "the others know of it")
    assert loads.read_text().splitlines() == ["one"], "the other worker never loaded it"
