"""Messages as a stranger, or a broken program, might put them into a queue."""

import base64
import copy
import json
import pickle
import uuid
from typing import Any

from common.redis.keys import CELERY_PREFIX

QUEUE = f"{CELERY_PREFIX}any"


def body(value: Any) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


def ticket(job: Any = "0123456789ab") -> dict[str, Any]:
    """A message as Celery writes it."""
    return {
        "body": body([[job], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": "hugqueue.test-echo",
            "id": str(uuid.uuid4()),
            "eta": None,
            "expires": None,
            "retries": 0,
            "timelimit": [None, None],
            "argsrepr": "('0123456789ab',)",
            "kwargsrepr": "{}",
        },
        "properties": {
            "correlation_id": str(uuid.uuid4()),
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "any"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }


def changed(path: str, value: Any) -> bytes:
    """A ticket with one part replaced; `path` as `headers.timelimit`."""
    message = copy.deepcopy(ticket())
    *above, last = path.split(".")
    parent = message
    for name in above:
        parent = parent[name]
    parent[last] = value
    return json.dumps(message).encode()


def without(path: str) -> bytes:
    """A ticket with one part taken out."""
    message = ticket()
    *above, last = path.split(".")
    parent = message
    for name in above:
        parent = parent[name]
    del parent[last]
    return json.dumps(message).encode()


_ODD: list[Any] = [None, 5, "x", [], {}, [1, 2, 3], True, -1.5, {"a": [1]}, ["x", "y"]]
_PARTS = [
    "headers", "properties", "body", "content-type", "content-encoding", "headers.task", "headers.id",
    "headers.timelimit", "headers.eta", "headers.expires", "headers.retries", "headers.lang", "headers.argsrepr",
    "headers.group", "headers.root_id", "headers.shadow", "headers.stamped_headers", "headers.compression",
    "headers.ignore_result", "headers.delivery_info", "properties.delivery_tag", "properties.delivery_info",
    "properties.body_encoding", "properties.priority", "properties.correlation_id", "properties.reply_to",
]  # fmt: skip

NOT_JSON = [
    b"not json", b"", b"\xff\xfe\x00", b'{"body": ', b"NaN", b"[" * 100_000, b'{"a":' * 50_000, b"\x80\x04K\x01.",
]  # fmt: skip
NOT_OBJECTS = [b"5", b"[]", b"null", b"true", b'"text"', b"[[], 1]", b"1e999", json.dumps([ticket()]).encode()]
BODIES = [
    body(value) for value in (5, None, "x", [], [1], [[], {}], {"args": 1}, [5, 5, 5], [[["x"]], {}, {}], [[], [], []])
] + ["not base64!", "====", base64.b64encode(b"not json").decode(), base64.b64encode(pickle.dumps(1)).decode()]
FORGED = [json.dumps(ticket(job)).encode() for job in (None, 5, [], {}, "../../x", "0123456789ab\n", "x" * 10_000)]


def all_broken() -> list[bytes]:
    """Every broken message of this file."""
    shapes = [changed("body", text) for text in BODIES]
    shapes += [changed(part, value) for part in _PARTS for value in _ODD]
    shapes += [without(part) for part in _PARTS[:9] + _PARTS[20:24]]
    shapes += [
        changed("content-type", "application/x-python-serialize"),
        changed("headers.task", "celery.chord_unlock"),
        changed("headers.task", "celery.map"),
        changed("headers.task", "no.such.task"),
        changed("headers.eta", "2999-01-01T00:00:00+00:00"),
        changed("headers.compression", "no-such-compression"),
        b"{}",
    ]
    return [*NOT_JSON, *NOT_OBJECTS, *shapes, *FORGED]
