"""How many cores a process counts as its own, and what its children are told of them."""

import os
from pathlib import Path

import pytest

from workers.child_env import available_cpus, child_env

EVERY = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max 100000", EVERY), ("50000 100000", 1), ("100000 100000", 1), (f"{EVERY}50000 100000", EVERY), ("", EVERY)],
)
def test_cores_are_those_that_a_container_was_given(tmp_path: Path, limit: str, expected: int):
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    assert available_cpus(tmp_path / "cpu.max") == expected


def test_without_a_limit_all_cores_count(tmp_path: Path):
    assert available_cpus(tmp_path / "none") == EVERY


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert child_env("cpu", processes=2 * EVERY)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert child_env("cpu", processes=2 * EVERY)["OMP_NUM_THREADS"] == "3"


def test_models_are_told_no_password_of_redis(monkeypatch: pytest.MonkeyPatch):
    secrets = {"CELERY_BROKER_URL", "REDIS_URL", "REDIS_PASSWORD"}  # the last one is set by the Helm chart
    for name in secrets:
        monkeypatch.setenv(name, "secret")
    assert not child_env("cpu").keys() & secrets
