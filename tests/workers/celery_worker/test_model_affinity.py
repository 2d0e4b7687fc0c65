"""Which jobs a worker leaves to others, or for later, by the models they want."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from common.queue.heartbeats import Heartbeat
from common.records import JobSpec, new_job_id
from workers.celery_worker.model_affinity import DWELL, LEAST_DWELL, LOYALTY, PATIENCE, Affinity, Holding


def _spec(model: str | None, task: str = "fill-mask") -> JobSpec:
    return JobSpec(new_job_id(), task, model)


def _summary(model: str) -> dict[str, object]:
    return {"task": "fill-mask", "model": model, "bytes": 1}


def _peer(name: str, *models: str, state: str = "ready") -> Heartbeat:
    held = tuple(_summary(model) for model in models)
    return Heartbeat(name, "cpu", "", ("cpu", "any"), 3, 1, "host", 0.0, state, held)


class Worker:
    """An `Affinity` with what it looks at."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.holding = Holding()
        self.peers: list[Heartbeat] = []
        self.jobs: dict[str | None, JobSpec] = {}
        self.turns = ExitStack()  #: those in hand
        self.affinity = Affinity("me", lambda: self.holding, lambda: self.peers, lambda: self.now)

    def admits(self, model: str | None) -> bool:
        """Whether a ticket of the one job with that model is taken."""
        return self.affinity.admits(self.jobs.setdefault(model, _spec(model)))

    def load(self, *models: str, evicted: int = 0, seconds: float = 1.0) -> None:
        self.holding = Holding([_summary(model) for model in models], evicted, seconds, self.now)


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def crowded(worker: Worker) -> Iterator[Worker]:
    """A worker that let a model go for `a` just now, and is at work with it."""
    worker.load("a", evicted=1)
    worker.turns.enter_context(worker.affinity.at(_spec("a")))
    with worker.turns:
        yield worker


def test_a_worker_alone_whose_models_fit_together_takes_whatever_comes(worker: Worker) -> None:
    worker.load("a", "b")
    with worker.affinity.at(_spec("a")):
        assert all(worker.admits(model) for model in ("a", "b", "c", None))


def test_a_model_that_another_worker_has_is_left_to_it_for_a_moment(worker: Worker) -> None:
    worker.peers = [_peer("other", "a")]
    assert not worker.admits("a")
    assert worker.admits("b"), "that nobody has"
    worker.now += PATIENCE
    assert worker.admits("a"), "the other one has not done it alone"


def test_jobs_that_another_worker_keeps_up_with_are_left_to_it_for_ever(worker: Worker) -> None:
    worker.peers = [_peer("other", "a")]
    for _ in range(100):
        assert not worker.affinity.admits(_spec("a"))
        worker.now += PATIENCE / 2


@pytest.mark.parametrize("peer", [_peer("me", "a"), _peer("other", "a", state="stopping"), _peer("other", "b")])
def test_a_model_is_not_left_to_a_worker_that_cannot_take_it(worker: Worker, peer: Heartbeat) -> None:
    worker.peers = [peer]
    assert worker.admits("a")


def test_a_model_is_not_left_to_a_worker_of_other_queues(worker: Worker) -> None:
    worker.peers = [replace(_peer("other", "a"), queues=("train",))]
    assert worker.admits("a")


def test_a_crowded_worker_keeps_its_model_for_some_loads_and_then_lets_the_other_have_its_turn(crowded: Worker) -> None:
    assert not crowded.admits("b")
    crowded.now += DWELL - 0.1
    assert (crowded.admits("b"), crowded.admits("a")) == (False, True)
    crowded.now += 0.1
    assert crowded.admits("b")


def test_quick_loads_make_the_turns_of_models_short_but_not_shorter_than_some_seconds(crowded: Worker) -> None:
    crowded.load("a", evicted=1, seconds=0.01)
    assert not crowded.admits("b")
    crowded.now += LEAST_DWELL
    assert crowded.admits("b")


def test_a_crowded_worker_on_its_way_to_a_model_takes_no_other(crowded: Worker) -> None:
    crowded.admits("b")
    crowded.now += DWELL
    assert crowded.admits("b")
    with crowded.affinity.at(_spec("b")):
        assert (crowded.admits("a"), crowded.admits("b"), crowded.admits("c")) == (False, True, False)
        crowded.turns.close()
        crowded.load("b", evicted=2)
        assert (crowded.admits("a"), crowded.admits("b")) == (False, True)


def test_the_model_that_waits_longest_comes_next(crowded: Worker) -> None:
    while crowded.now < crowded.holding.since + DWELL:
        assert not crowded.admits("b")
        crowded.now += 1.0
        assert crowded.now >= crowded.holding.since + DWELL or not crowded.admits("c")
    assert (crowded.admits("c"), crowded.admits("b")) == (False, True)


def test_a_model_that_nobody_asks_for_any_more_holds_nobody_up(crowded: Worker) -> None:
    crowded.admits("b")
    crowded.now += DWELL + 1.0
    assert crowded.admits("c")


def test_a_crowded_worker_without_work_for_its_model_takes_another_at_once(worker: Worker) -> None:
    worker.load("a", evicted=1)
    with worker.affinity.at(_spec("a")):
        assert not worker.admits("b")
    assert not worker.admits("b"), "its next ticket may be on its way"
    worker.now += 1.0
    assert worker.admits("b")


def test_two_crowded_workers_with_a_model_each_do_not_swap_them_but_neither_is_starved(crowded: Worker) -> None:
    crowded.peers = [_peer("other", "b")]
    for _ in range(int(LOYALTY * DWELL)):
        assert not crowded.admits("b")
        crowded.now += 1.0
    assert crowded.admits("b"), "the other one must be busy with something else"
