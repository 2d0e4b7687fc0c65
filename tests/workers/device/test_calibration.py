"""The size of batches: measured once, known to the next process, lowered when memory runs out."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from common.errors import Cancelled
from common.jobs import JobSpec, new_job_id
from common.records import Json, Outcome
from common.redis.keys import token_budgets
from common.reporting import Reporter
from common.settings import Settings
from tests.support import tiny_models
from tests.support.device_process import RunningDevice
from tests.support.processes import RedisServer, free_port
from tests.support.tiny_models import RecordingMonitor
from workers.device.client.device_client import DeviceClient
from workers.device.client.token_budget_cache import TokenBudgetCache
from workers.device.server.calibration import calibrate
from workers.device.server.model_cache import LoadedModel, ModelCache
from workers.inference.core.batches import Item, run_batches
from workers.inference.core.runner import RunMonitor, Runner
from workers.inference.core.token_budget import TokenBudget
from workers.models.resolver import ModelPolicy

#: Tokens of one record of the runner below.
TOKENS = 32


class Timed(Runner):
    """Takes so many milliseconds for a batch, and so many for each of its thousand tokens; memory holds `memory`."""

    needs_model = False

    def __init__(self, each_batch: float, each_thousand: float, memory: int = 1 << 30) -> None:
        self.budget = TokenBudget.of("cpu")
        self.sizes: list[int] = []
        self._times = each_batch, each_thousand
        self._memory = memory

    def run(self, inputs: Sequence[Json], params: Mapping[str, Json], monitor: RunMonitor) -> list[Outcome]:
        items = [Item(position, TOKENS, value) for position, value in enumerate(inputs)]
        assert self.budget is not None
        return [Outcome(str(value)) for value in run_batches(items, self._forward, self.budget, monitor)]

    def _forward(self, values: Sequence[Json]) -> Sequence[Json]:
        tokens = TOKENS * len(values)
        if tokens > self._memory:
            raise MemoryError
        self.sizes.append(tokens)
        time.sleep((self._times[0] + self._times[1] * tokens / 1000) / 1000)
        return values


def calibrated(runner: Runner, known: int | None = None) -> TokenBudget:
    calibrate(LoadedModel(runner, "embedding", None, "cpu"), known, RecordingMonitor())
    assert runner.budget is not None
    return runner.budget


def test_batches_grow_while_that_makes_them_faster():
    assert calibrated(Timed(each_batch=8, each_thousand=0)).tokens == 8192


def test_batches_stay_small_where_larger_ones_bring_nothing():
    assert calibrated(Timed(each_batch=0, each_thousand=40)).tokens == 512


def test_a_slow_device_is_not_kept_waiting():
    runner = Timed(each_batch=150, each_thousand=300)
    begun = time.monotonic()
    assert calibrated(runner).tokens == 2048  # what is usual: the race was over before it was decided
    assert time.monotonic() - begun < 5
    assert max(runner.sizes) <= 2048


def test_memory_that_runs_out_in_the_trial_ends_it():
    budget = calibrated(Timed(each_batch=8, each_thousand=0, memory=1024))
    assert budget.tokens <= 1024
    assert budget.items == 64


def test_what_is_known_is_not_measured_again():
    runner = Timed(1, 1)
    assert calibrated(runner, known=777).tokens == 777
    assert calibrated(runner, known=999).tokens == 777
    assert runner.sizes == []


def test_a_cancelled_trial_is_run_later():
    runner = Timed(1, 1)
    with pytest.raises(Cancelled):
        calibrate(LoadedModel(runner, "embedding", None, "cpu"), None, RecordingMonitor(cancel_after=2))
    assert runner.budget is not None and runner.budget.tokens == 2048
    assert calibrated(runner).calibrated


def test_runners_without_a_budget_and_generators_are_not_calibrated(tmp_path: Path):
    models = ModelCache("cpu", ModelPolicy(any_path=True))
    path = str(tiny_models.causal_gpt2(tmp_path))
    loaded, *_ = models.get(JobSpec(new_job_id(), "text-generation", path), Reporter())
    before = loaded.runner.budget
    assert before is not None
    calibrate(loaded, None, RecordingMonitor())
    assert before.tokens_run == 0


@pytest.fixture
def client(server: RedisServer) -> "redis.Redis":
    return server.client


def test_a_process_uses_and_stores_measured_batch_sizes(client: "redis.Redis", tmp_path: Path):
    model = str(tiny_models.classifier(tmp_path))
    loaded, *_ = ModelCache("cpu", ModelPolicy(any_path=True)).get(_spec("sentiment-analysis", model), Reporter())
    client.hset(token_budgets("my CPU"), loaded.digest, 777)
    process = DeviceClient(Settings(device="cpu", any_path=True), TokenBudgetCache(client, "my CPU"))
    device = RunningDevice(process)
    try:
        process.start()
        device.run("sentiment-analysis", ["a cat"], model=model)
        device.run("embedding", ["a cat"], model=model)
    finally:
        process.stop()
    kept = client.hgetall(token_budgets("my CPU"))
    assert kept.pop(loaded.digest.encode()) == b"777"
    (learned,) = kept.values()
    assert int(learned) in (512, 1024, 2048, 4096, 8192)
    assert 0 < client.ttl(token_budgets("my CPU")) <= 30 * 86400


def test_an_invalid_budget_is_ignored(client: "redis.Redis"):
    good, small = "0123456789abcdef", "0" * 16
    forged = {good: "512", small: "1", "f" * 16: "9" * 40, "a" * 16: "-5", "b" * 16: "many", "../x": "512"}
    client.hset(token_budgets("my CPU"), mapping=forged)
    known = TokenBudgetCache(client, "my CPU")
    assert known.known() == {good: 512}
    known.update({small: 3, "nonsense": 512, "c" * 16: "512; DEL", good: 300})
    assert client.hget(token_budgets("my CPU"), small) == b"1"
    assert client.hget(token_budgets("my CPU"), good) == b"300"
    assert client.hlen(token_budgets("my CPU")) == len(forged)


def test_without_redis_nothing_is_known_and_work_continues():
    known = TokenBudgetCache(redis.Redis(port=free_port(), retry=Retry(NoBackoff(), 0)), "my CPU")
    assert known.known() == {}
    known.update({"0" * 16: 512})


def _spec(task: str, model: str) -> JobSpec:
    return JobSpec(new_job_id(), task, model)
