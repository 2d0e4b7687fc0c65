"""Which jobs a worker leaves to others, or for later, by the models they want."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from msgspec.structs import replace

from common.jobs import JobSpec, new_job_id
from common.queue.heartbeats import Heartbeat
from workers.celery_worker.model_affinity import (
    DEFER_SECONDS,
    DWELL_LOADS,
    MIN_DWELL_SECONDS,
    REMOTE_DWELL_FACTOR,
    ModelAffinity,
)
from workers.device.protocol import DeviceStatus


def _spec(model: str | None, task: str = "fill-mask") -> JobSpec:
    return JobSpec(new_job_id(), task, model)


def _summary(model: str) -> dict[str, object]:
    return {"task": "fill-mask", "model": model, "bytes": 1}


def _peer(name: str, *models: str, state: str = "ready") -> Heartbeat:
    held = tuple(_summary(model) for model in models)
    return Heartbeat(name, "cpu", "", ("cpu", "any"), 3, 1, "host", 0.0, state, held)


class Worker:
    """A `ModelAffinity` with what it looks at."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.status = DeviceStatus()
        self.live_workers: list[Heartbeat] = []
        self.jobs: dict[str | None, JobSpec] = {}
        self.running = ExitStack()  #: of the running chunks
        self.affinity = ModelAffinity("me", lambda: self.status, lambda: self.live_workers, lambda: self.now)

    def should_run(self, model: str | None) -> bool:
        """Whether a ticket of the one job with that model is taken."""
        return self.affinity.should_run(self.jobs.setdefault(model, _spec(model)))

    def load(self, *models: str, evicted: int = 0, seconds: float = 1.0) -> None:
        self.status = DeviceStatus(
            models=tuple(_summary(model) for model in models),
            evicted=evicted,
            load_seconds=seconds,
            changed_at=self.now,
        )


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def crowded(worker: Worker) -> Iterator[Worker]:
    """A worker that let a model go for `a` just now, and is at work with it."""
    worker.load("a", evicted=1)
    worker.running.enter_context(worker.affinity.running(_spec("a")))
    with worker.running:
        yield worker


def test_a_worker_alone_whose_models_fit_together_takes_whatever_comes(worker: Worker) -> None:
    worker.load("a", "b")
    with worker.affinity.running(_spec("a")):
        assert all(worker.should_run(model) for model in ("a", "b", "c", None))


def test_a_model_that_another_worker_has_is_left_to_it_for_a_moment(worker: Worker) -> None:
    worker.live_workers = [_peer("other", "a")]
    assert not worker.should_run("a")
    assert worker.should_run("b"), "that nobody has"
    worker.now += DEFER_SECONDS
    assert worker.should_run("a"), "the other one has not done it alone"


def test_jobs_that_another_worker_keeps_up_with_are_left_to_it_for_ever(worker: Worker) -> None:
    worker.live_workers = [_peer("other", "a")]
    for _ in range(100):
        assert not worker.affinity.should_run(_spec("a"))
        worker.now += DEFER_SECONDS / 2


@pytest.mark.parametrize("peer", [_peer("me", "a"), _peer("other", "a", state="stopping"), _peer("other", "b")])
def test_a_model_is_not_left_to_a_worker_that_cannot_take_it(worker: Worker, peer: Heartbeat) -> None:
    worker.live_workers = [peer]
    assert worker.should_run("a")


def test_a_model_is_not_left_to_a_worker_of_other_queues(worker: Worker) -> None:
    worker.live_workers = [replace(_peer("other", "a"), queues=("train",))]
    assert worker.should_run("a")


def test_a_full_worker_keeps_its_model_for_a_while_then_switches(crowded: Worker) -> None:
    assert not crowded.should_run("b")
    crowded.now += DWELL_LOADS - 0.1
    assert (crowded.should_run("b"), crowded.should_run("a")) == (False, True)
    crowded.now += 0.1
    assert crowded.should_run("b")


def test_quick_loads_shorten_the_dwell_but_not_below_some_seconds(crowded: Worker) -> None:
    crowded.load("a", evicted=1, seconds=0.01)
    assert not crowded.should_run("b")
    crowded.now += MIN_DWELL_SECONDS
    assert crowded.should_run("b")


def test_a_crowded_worker_that_is_loading_a_model_takes_no_other(crowded: Worker) -> None:
    crowded.should_run("b")
    crowded.now += DWELL_LOADS
    assert crowded.should_run("b")
    with crowded.affinity.running(_spec("b")):
        assert (crowded.should_run("a"), crowded.should_run("b"), crowded.should_run("c")) == (False, True, False)
        crowded.running.close()
        crowded.load("b", evicted=2)
        assert (crowded.should_run("a"), crowded.should_run("b")) == (False, True)


def test_a_crowded_worker_without_work_for_its_model_takes_another_at_once(worker: Worker) -> None:
    worker.load("a", evicted=1)
    with worker.affinity.running(_spec("a")):
        assert not worker.should_run("b")
    assert not worker.should_run("b"), "its next ticket may be on its way"
    worker.now += 1.0
    assert worker.should_run("b")


def test_two_full_workers_do_not_swap_models_and_neither_is_starved(crowded: Worker) -> None:
    crowded.live_workers = [_peer("other", "b")]
    for _ in range(int(REMOTE_DWELL_FACTOR * DWELL_LOADS)):
        assert not crowded.should_run("b")
        crowded.now += 1.0
    assert crowded.should_run("b"), "the other one must be busy with something else"
