"""Machines that share nothing but Redis and the store: no home, no temporary directory, no file of another."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis

from common.queue.heartbeats import live_workers
from tests.support.processes import Shell, Workers, environment, wait_until


class Machine:
    """The directories and the environment of another machine."""

    def __init__(self, base: Path, name: str, url: str, shared: Path, network: Sequence[str] = ()) -> None:
        self.home = base / name
        self.network = network  #: words before a command that run it in the machine's own network
        folders = {
            "HOME": "home",
            "TMPDIR": "tmp",
            "HF_HOME": "hf",
            "HUGQUEUE_HOME": "state",
            "XDG_CACHE_HOME": "cache",
        }
        for folder in (*(self.home / folder for folder in folders.values()), shared / "store", shared / "out"):
            folder.mkdir(parents=True, exist_ok=True)
        own = {variable: str(self.home / folder) for variable, folder in folders.items()}
        limits = {"HUGQUEUE_LEASE": "3", "HUGQUEUE_RENEW": "0.3", "HUGQUEUE_REAP": "0.5"}
        store = {"HUGQUEUE_STORE_URL": str(shared / "store"), "HUGQUEUE_SHARED": str(shared)}
        self.environ = environment(self.home, url) | own | limits | store

    def workers(self) -> Workers:
        return Workers(self.environ, self.home / "workers.log", before=self.network)

    def shell(self) -> Shell:
        return Shell(self.environ, self.home / "home")


@contextmanager
def working(machines: Sequence[Machine], client: "redis.Redis") -> Iterator[None]:
    """A worker on each machine, ready, as long as the block runs."""
    with ExitStack() as running:
        for machine in machines:
            started = machine.workers().start()
            running.callback(started.kill)
        ready = len(machines)
        wait_until(
            lambda: sum(beat.state == "ready" for beat in live_workers(client)) == ready, 90, "all workers are ready"
        )
        yield


def share_work(producer: Machine, client: "redis.Redis", shared: Path) -> None:
    """Have a job done by all workers, results fetched by the producer; and another one into a directory."""
    shell = producer.shell()
    texts = [f"line {number} " + "x" * 100 for number in range(400)]
    wanted = [text.upper() for text in texts]
    (shell.directory / "in.txt").write_text("\n".join(texts))
    options = ("--task", "test-wait", "in.txt", "-p", "seconds=0.1", "--chunk-size", "20")
    shell.run("submit", *options, "-o", "out.jsonl")
    rows = [json.loads(line) for line in (shell.directory / "out.jsonl").read_text().splitlines()]
    assert [row["output"] for row in rows] == wanted
    wait_until(lambda: all(beat.records_done for beat in live_workers(client)), 10, "all of them worked")
    shell.run("submit", *options, "-o", f"{shared}/out/", "--output-format", "jsonl")
    parts = sorted((shared / "out").glob("part-*.jsonl"))
    assert (len(parts), (shared / "out" / "_SUCCESS").exists()) == (20, True)
    assert [json.loads(line)["output"] for part in parts for line in part.read_text().splitlines()] == wanted
