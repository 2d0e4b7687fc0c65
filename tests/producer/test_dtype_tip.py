"""The tip of a faster dtype: only where all workers gain, and only to those who have not chosen."""

from pathlib import Path

import pytest

from common.jobs import JobSpec, new_job_id
from common.queue.heartbeats import Heartbeat
from common.settings import Settings
from producer.dtype_tip import MIN_RECORDS, dtype_tip
from workers.devices import faster_dtype


def spec(task: str = "embedding", **params: object) -> JobSpec:
    return JobSpec(new_job_id(), task, params=params)


def workers(*dtypes: str) -> list[Heartbeat]:
    return [
        Heartbeat(str(number), "cpu", "a CPU", ("any",), 3, pid=1, host="here", started_at=1.0, faster_dtype=dtype)
        for number, dtype in enumerate(dtypes)
    ]


@pytest.mark.parametrize("task", ["embedding", "feature-extraction"])
def test_vectors_on_cpus_that_do_bfloat16_get_a_tip(task: str) -> None:
    tip = dtype_tip(spec(task), MIN_RECORDS, workers("bfloat16", "bfloat16"))
    assert tip == "The workers' CPU does bfloat16: -p dtype=bfloat16 is about 1.5 times as fast, cosine 0.9998."


@pytest.mark.parametrize(
    ("job", "records", "found"),
    [
        (spec("fill-mask"), MIN_RECORDS, workers("bfloat16")),
        (spec(dtype="float32"), MIN_RECORDS, workers("bfloat16")),
        (spec(), MIN_RECORDS - 1, workers("bfloat16")),
        (spec(), MIN_RECORDS, workers("bfloat16", "")),
        (spec(), MIN_RECORDS, workers("a word of a later release")),
        (spec(), MIN_RECORDS, []),
    ],
)
def test_others_get_none(job: JobSpec, records: int, found: list[Heartbeat]) -> None:
    assert dtype_tip(job, records, found) is None


def test_a_worker_that_computes_in_less_by_default_or_on_a_gpu_has_no_faster_dtype() -> None:
    assert faster_dtype(Settings(device="cpu", dtype="bfloat16")) == ""
    assert faster_dtype(Settings(device="cuda:0")) == ""


def test_a_cpu_with_instructions_for_bfloat16_is_faster_in_it() -> None:
    has = any(flag in Path("/proc/cpuinfo").read_text().split() for flag in ("avx512_bf16", "amx_bf16"))
    assert faster_dtype(Settings(device="cpu")) == ("bfloat16" if has else "")
