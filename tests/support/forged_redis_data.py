"""What a stranger with access to Redis might write there by hand: jobs, payloads, heartbeats."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import redis

from common.jobs import JobSpec, new_job_id
from common.payloads.codec import VERSION, encode_outcomes, encode_records
from common.payloads.safe_ipc import write_stream
from common.records import Outcome, Record
from common.redis import keys
from common.redis.keys import JobKeys

RECORDS = {"id": pa.string(), "input": pa.string(), "error_code": pa.string(), "error_message": pa.string()}
OUTCOMES = {
    "position": pa.int32(),
    "id": pa.string(),
    "output": pa.string(),
    "error_code": pa.string(),
    "error_message": pa.string(),
    "truncated": pa.bool_(),
}
GOOD = encode_records([Record(0, "a"), Record(1, "b")])


def forged(
    columns: Mapping[str, Sequence[object]], kinds: Mapping[str, pa.DataType] = RECORDS, content: str = "records"
) -> bytes:
    """A payload as its writer would not write it."""
    arrays = [pa.array(values, kinds[name]) for name, values in columns.items()]
    metadata = {b"version": VERSION, b"content": content.encode(), b"kind": b"typed"}
    return write_stream(pa.table(arrays, names=list(columns)).replace_schema_metadata(metadata))


def bomb() -> bytes:
    """A small payload of 600 MB."""
    return forged({"id": ['"x"'], "input": ["\0" * 600_000_000], "error_code": [None], "error_message": [None]})


def payloads() -> dict[str, bytes]:
    """Payloads that are none, by what is wrong with them."""
    row: dict[str, Sequence[object]] = {name: ["x"] for name in RECORDS}
    good: dict[str, Sequence[object]] = row | {"id": ['"x"']}
    return {
        "empty": b"",
        "random": os.urandom(1000),
        "truncated": GOOD[: len(GOOD) // 2],
        "flipped": GOOD[:200] + bytes([GOOD[200] ^ 255]) + GOOD[201:],
        "pickle": b"\x80\x04cos\nsystem\n.",
        "outcomes": encode_outcomes([0], [0], [Outcome("x")], None),
        "other columns": forged({"id": ["1"], "input": ["x"]}),
        "other types": forged(row, RECORDS | {"input": pa.large_string()}),
        "a file that is a list": forged(good | {"blob": [[b"x"]]}, RECORDS | {"blob": pa.list_(pa.binary())}),
        "a file among outcomes": forged(good | {"blob": [b"x"]}, RECORDS | {"blob": pa.binary()}, "outcomes"),
        "nothing but nulls": forged({name: [None] for name in RECORDS}, RECORDS | {"input": pa.null()}),
        "ids that are not JSON": forged(row),
        "bomb": bomb(),
    }


def write_job(client: "redis.Redis", fields: Mapping[str, Any], *, job_id: str = "", **spec: Any) -> str:
    """Write an accepted job of one chunk, some fields of its hash and of its spec replaced; return its id."""
    job_id = job_id or new_job_id()
    values = json.loads(JobSpec(job_id, "test-echo").encode()) | spec
    hash_ = {
        "spec": json.dumps(values),
        "status": "queued",
        "round": 0,
        "chunks": 1,
        "records": 2,
        "accepted_at": client.time()[0],  # type: ignore[index]
        "ttl_ms": 60_000,
        **fields,
    }
    names = JobKeys.of(job_id)
    client.hset(names.job, mapping={key: value for key, value in hash_.items() if value is not None})
    client.hset(names.input, "0", GOOD)
    client.rpush(names.open, 0)
    client.sadd(keys.ACTIVE, job_id)
    client.zadd(keys.JOBS, {job_id: 1})
    return job_id


def broken_hashes() -> list[dict[str, Any]]:
    """Fields of a job's hash that no program of ours writes."""
    return [
        {"spec": "not JSON"},
        {"spec": b"\xff\xfe"},
        {"spec": "[" * 100_000},
        {"spec": "[]"},
        {"spec": None},
        {"status": None},
        {"status": "unheard-of"},
        {"round": "x"},
        {"round": None},
        {"ttl_ms": None},
        {"ttl_ms": "soon"},
        {"chunks": None},
        {"chunks": "many"},
        {"run_info": "[" * 100_000},
        {"run_info": "5"},
        {"started_at": "nan"},
        {"started_at": "1e300"},
        {"succeeded": "9" * 10_000},
    ]


def broken_specs() -> list[dict[str, Any]]:
    """Parts of a job's spec that no program of ours writes."""
    return [
        {"id": "0123456789ab"},
        {"id": 5},
        {"queue": "nowhere"},
        {"queue": []},
        {"params": ["x"]},
        {"priority": 3},
        {"inputs": [1, None]},
        {"created_at": float("nan")},
        {"created_at": 1e300},
        {"task": "unheard-of"},
        {"task": None},
        {"model": "/etc\0/passwd"},
        {"model": "\ud800"},
        {"revision": ["x"]},
        {"max_errors": "lots"},
        {"training": "yes"},
        {"training": {}},
        {"queue": "train"},
    ]


def write_wrong_types(client: "redis.Redis") -> None:
    """Write keys of ours as another kind of value, and members that are no names."""
    for name in ("job", "input", "open", "leased", "attempts", "commits", "commit_history", "tickets"):
        job_id = write_job(client, {})
        key = getattr(JobKeys.of(job_id), name)
        client.delete(key)
        client.set(key, "x")
    job_id = write_job(client, {})
    client.sadd(JobKeys.of(job_id).leased, "0", "not a chunk", b"\xff")
    client.rpush(f"{JobKeys.of(job_id).job}:lease:0", "x")
    for key in (keys.ACTIVE, keys.WORKERS, JobKeys.of(job_id).tickets):
        client.sadd(key, "", "x", b"\xff\xfe", "../..", "a" * 10_000)
    client.zadd(keys.JOBS, {"x": 5, b"\xff": float("inf"), "": 1})
    client.rpush(JobKeys.of(write_job(client, {})).open, "x", b"\xff", "-1", "99999999999999999999")
    layered = write_job(client, {"round": 1})
    client.hset(JobKeys.of(layered).commit_history, "0", "a:b c")


def write_heartbeats(client: "redis.Redis", sound: Mapping[str, Any]) -> None:
    """Write heartbeats that differ from a sound one in one field."""
    changes: list[dict[str, Any]] = [
        {"slots": 10**12}, {"slots": "x"}, {"slots": -5}, {"slots": 2.5}, {"name": 5}, {"queues": 5}, {"queues": [5]},
        {"models": ["x"]}, {"models": None}, {"records_per_second": "x"}, {"records_per_second": float("nan")},
        {"memory_bytes": 10**400}, {"memory_bytes": None}, {"started_at": []}, {"name": "\x1b]0;evil\x07"}, {"more": 1},
    ]  # fmt: skip
    forms: list[Any] = [json.dumps({**sound, **change}) for change in changes]
    for number, raw in enumerate([*forms, "5", "[]", "not JSON", "[" * 100_000, b"\xff"]):
        client.set(keys.worker(f"forged-{number}"), raw)
        client.sadd(keys.WORKERS, f"forged-{number}")
