"""The results of a job as the records of another: typed columns, failures, later rounds, forged splits."""

import json
from dataclasses import replace

import pyarrow as pa
import pytest

from common.errors import ModelError, PayloadError
from common.inputs.arrow_rows import ArrowRow, ArrowRows
from common.inputs.file_split import is_split
from common.inputs.job_split import JobSplit, is_job_split
from common.jobs import JobSpec, new_job_id
from common.own_columns import Own
from common.payloads.codec import decode_records, encode_outcomes, encode_records
from common.payloads.own_columns import encode_own
from common.queue.jobs import JobStore
from common.queue.ledger import Ledger
from common.records import Counts, Failure, Outcome, Record
from common.redis.keys import JobKeys
from tests.support.ledger_jobs import leased

DAYS = pa.RecordBatch.from_pydict(
    {
        "text": ["a", "b", "c"],
        "price": pa.array([1, 2, 3], pa.decimal128(12, 4)),
        "day": pa.array([1, None, 3], pa.date32()),
    }
)
BAD = Outcome(failure=Failure("too_long", "Too long."))


def split(job: str, **changed: object) -> JobSplit:
    return JobSplit(**{"job": job, "chunk": 0, "output_as": "label", **changed})


def run(ledger: Ledger, store: JobStore, spec: JobSpec, outcomes: dict[int, Outcome]) -> None:
    held = leased(ledger, spec.id)
    payload = encode_outcomes(list(outcomes), list(outcomes), list(outcomes.values()), None)
    store.payloads(spec).write_outcomes(held.chunk, held.version, payload)
    failed = [outcome.failure for outcome in outcomes.values()].count(BAD.failure)
    assert ledger.commit(held, Counts(len(outcomes) - failed, failed), {}) == "committed"


def first_job(store: JobStore, ledger: Ledger, owns: list[Own]) -> JobSpec:
    spec = JobSpec(new_job_id(), "test-echo", keep=None)
    records = [Record(f"r{n}", text, own=own) for n, (text, own) in enumerate(zip("abc", owns, strict=True))]
    store.create(spec)
    store.payloads(spec).add_records(0, encode_records(records), encode_own(records))
    ledger.accept(spec.id, 1, 3)
    return spec


def second_job(store: JobStore, found: JobSplit, **more: object) -> JobSpec:
    spec = replace(JobSpec(new_job_id(), "embedding", keep=None), **more)
    store.create(spec)
    store.payloads(spec).add_records(0, found.encode())
    return spec


def test_columns_of_a_table_keep_their_types(store: JobStore, ledger: Ledger) -> None:
    rows = ArrowRows(DAYS, {field.name: field.type for field in DAYS.schema})
    first = first_job(store, ledger, [ArrowRow(rows, number) for number in range(3)])
    second = store.payloads(second_job(store, split(first.id)))
    assert second.count_records(0) == 3
    records = second.records_with_own(0) or []
    assert {record.failure.code for record in records if record.failure} == {"input_failed"}  # nothing has run
    run(ledger, store, first, {0: Outcome("A"), 1: BAD, 2: Outcome("C")})
    records = second.records_with_own(0) or []
    assert [record.id for record in records] == ["r0", "r1", "r2"]
    assert [record.input for record in records] == ["a", None, "c"]
    assert records[1].failure and "failed: too_long: Too long." in records[1].failure.message
    own = records[2].own
    assert isinstance(own, ArrowRow) and own.types == {**rows.types, "label": pa.string()}
    assert own.rows.batch.to_pylist()[1] == {**DAYS.to_pylist()[1], "label": None}
    assert encode_own(records) and decode_records(second.records(0) or b"")[0].input == "a"
    # A retry replaces what had failed.
    ledger.retry(first.id)
    run(ledger, store, first, {1: Outcome("B")})
    records = second.records_with_own(0) or []
    assert [record.own.as_dict()["label"] for record in records] == ["A", "B", "C"]


def test_a_template_has_the_columns_and_the_output(store: JobStore, ledger: Ledger) -> None:
    first = first_job(store, ledger, [{"text": text, "n": n} for n, text in enumerate("abc")])
    run(ledger, store, first, {0: Outcome({"x": 1}), 1: Outcome("B"), 2: Outcome("C")})
    found = second_job(store, split(first.id, records=2), template="{n} {output} {text}", keep=("label", "n"))
    records = store.payloads(found).records_with_own(0) or []
    assert [record.input for record in records] == ['0 {"x": 1} a', "1 B b"]
    assert [record.own for record in records] == [{"n": 0, "label": {"x": 1}}, {"n": 1, "label": "B"}]
    third = second_job(store, split(found.id, column="label", id_column="n"))
    assert store.payloads(third).count_records(0) == 2


def test_a_job_that_is_gone_and_a_forged_one_are_told(store: JobStore, ledger: Ledger) -> None:
    with pytest.raises(ModelError, match="was deleted or has expired") as caught:
        store.payloads(second_job(store, split(new_job_id()))).records(0)
    assert caught.value.code == "results_lost"
    itself = new_job_id()
    spec = second_job(store, split(itself), id=itself)
    for read in (store.payloads(spec).records, store.payloads(spec).count_records):
        with pytest.raises(PayloadError, match="results of results of more than 50 jobs"):
            read(0)
    other = second_job(store, split(itself))
    for value in (b"{}", other.encode()):
        store.client.hset(JobKeys.of(itself).job, "spec", value)
        with pytest.raises(PayloadError, match=f"job {itself}, whose results are the input"):
            store.payloads(other).records(0)


SOUND = {"job": "0" * 12, "chunk": 0, "output_as": "x", "records": None, "column": None, "id_column": None}


@pytest.mark.parametrize(
    "wrong", [{"job": "x"}, {"job": 3}, {"chunk": -1}, {"chunk": "0"}, {"records": 0}, {"output_as": None}, {"more": 1}]
)
def test_a_forged_split_is_refused(wrong: dict[str, object]) -> None:
    sound = JobSplit.decode(json.dumps(SOUND).encode())
    assert is_split(sound.encode()) and is_job_split(sound.encode())
    with pytest.raises(PayloadError, match="not a job split"):
        JobSplit.decode(json.dumps(SOUND | wrong).encode())
