"""What the row of a job says, from its submit to its end."""

from dataclasses import replace

import pytest

from common.jobs import Job, JobSpec, JobStatus
from common.records import Counts, Failure
from workers.celery_worker.job_rows import Rate, describe_arguments, describe_end, describe_progress, row_fields

SPEC = JobSpec("0123456789ab", "fill-mask", model="/models/x/bert", name="mine", created_at=100.0)
TRAINING = replace(SPEC, task="text-classification", training={}, queue="train")
JOB = Job(SPEC, JobStatus.RUNNING, chunks=10, records=10_000, counts=Counts(3997, 3), started_at=200.0)
STEP = {"step": 30, "steps": 120, "loss": 0.25, "learning_rate": 0.1, "examples_per_second": 9, "seconds_left": 90}


def test_arguments_are_words() -> None:
    assert describe_arguments(JOB) == "job 0123456789ab 'mine' · fill-mask · x/bert"
    trained = replace(JOB, spec=replace(TRAINING, model="a/b", name=None))
    assert describe_arguments(trained) == "job 0123456789ab · finetune text-classification · a/b"
    assert describe_arguments(replace(JOB, spec=JobSpec("0123456789ab", "t"))) == "job 0123456789ab · t"


@pytest.mark.parametrize(
    ("job", "rate", "text"),
    [
        (JOB, 310.4, "40 % · 4,000 of 10,000 · 310 records/s · 19s left · 3 failed"),
        (replace(JOB, counts=Counts(9999)), 0.52, "99 % · 9,999 of 10,000 · 0.5 records/s · 2s left"),
        (replace(JOB, counts=Counts(10_000)), 5.0, "100 % · 10,000 of 10,000"),
        (replace(JOB, counts=Counts(), stage="loading x"), 0.0, "0 % · 0 of 10,000 · loading x"),
        (replace(JOB, status=JobStatus.CANCELLING), 0.0, "40 % · 4,000 of 10,000 · 3 failed · cancelling"),
        (replace(JOB, status=JobStatus.SUBMITTING, records=None), 0.0, "its producer is submitting it"),
        (replace(JOB, status=JobStatus.QUEUED, records=0, counts=Counts()), 0.0, "0 of 0"),
        (replace(JOB, spec=TRAINING, progress=STEP), 0.0, "25 % · step 30 of 120, loss 0.25, 1:30 left"),
        (replace(JOB, spec=TRAINING, progress={"stage": "loading", "steps": "x"}), 0.0, "loading"),
        (replace(JOB, spec=TRAINING, status=JobStatus.QUEUED), 0.0, "queued"),
    ],
)
def test_an_unfinished_job_says_how_far_it_is(job: Job, rate: float, text: str) -> None:
    assert describe_progress(job, rate) == text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"status": JobStatus.COMPLETED, "counts": Counts(9997, 3)},
            "9,997 of 10,000 succeeded · 3 failed · in 1m 05s",
        ),
        ({"status": JobStatus.CANCELLED}, "cancelled · 4,000 of 10,000 done · 3 failed · in 1m 05s"),
        (
            {"status": JobStatus.FAILED, "failure": Failure("no_model", "Not found."), "counts": Counts()},
            "no_model: Not found. · 0 of 10,000 done · in 1m 05s",
        ),
        (
            {"status": JobStatus.COMPLETED, "spec": TRAINING, "progress": STEP | {"metrics": {"eval_f1": 0.5}}},
            "step 30 of 120, loss 0.25; f1 0.5 · in 1m 05s",
        ),
    ],
)
def test_a_finished_job_says_how_it_ended(changes: dict[str, object], text: str) -> None:
    assert describe_end(replace(JOB, finished_at=265.0, **changes)) == text


def test_the_fields_of_every_event_make_the_whole_row() -> None:
    fields = row_fields(JOB, 0.0)
    assert (fields["uuid"], fields["name"], fields["received"], fields["started"]) == (JOB.id, "hugqueue.job", 100, 200)
    failed = replace(JOB, status=JobStatus.FAILED, failure=Failure("x", "y" * 1000), finished_at=265.0)
    fields = row_fields(failed, 0.0)
    assert fields["runtime"] == 65 and fields["exception"] == fields["result"] and len(fields["result"]) == 300
    assert "runtime" not in row_fields(replace(JOB, status=JobStatus.CANCELLED, started_at=None), 0.0)


def at(done: int, round_: int = 0) -> Job:
    return replace(JOB, counts=Counts(done), round=round_)


def test_the_rate_is_that_of_the_last_minute() -> None:
    rate = Rate()
    assert rate.of(at(0), 210.0) == 0  # its model is loaded
    assert rate.of(at(100), 220.0) == 10
    for second in range(230, 330, 10):
        assert rate.of(at(100 + 50 * (second - 220)), float(second)) > 10
    assert rate.of(at(100 + 50 * 110), 330.0) == 50


def test_the_rate_of_a_job_that_is_met_midway_counts_from_its_start() -> None:
    assert Rate().of(at(4000), 220.0) == 200
    assert Rate().of(at(4000, round_=1), 220.0) == 0


def test_a_slow_job_has_a_rate_between_two_chunks_and_a_new_round_begins_again() -> None:
    rate = Rate()
    for moment, done in ((200, 0), (500, 300), (800, 600), (900, 600)):
        found = rate.of(at(done), float(moment))
    assert found == pytest.approx(300 / 400)
    assert rate.of(at(600, round_=1), 910.0) == 0
    assert rate.of(at(500, round_=1), 920.0) == 0
