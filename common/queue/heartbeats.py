"""Heartbeats: the status that each worker writes every few seconds, and the list of live workers."""

from collections.abc import Iterable, Mapping
from typing import Annotated

import msgspec
import redis
from msgspec import Meta

from common.records import Json
from common.redis import keys
from common.validation import one_line_of

#: Seconds after which a silent worker counts as gone.
TTL = 15.0

_Text = Annotated[str, one_line_of(4096)]
_Number = Annotated[float, Meta(gt=-1e18, lt=1e18)]
_Count = Annotated[int, Meta(ge=0, lt=10**18)]


class Heartbeat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One worker as it last described itself. Anybody who can write to Redis can write heartbeats."""

    name: _Text
    device: _Text  #: `cpu`, `cuda:0`
    device_name: _Text  #: as its maker names it
    queues: tuple[_Text, ...]
    slots: Annotated[int, Meta(ge=0, le=1000)]  #: chunks it processes at once; a job gets tickets by this number
    pid: _Count
    host: _Text
    started_at: _Number
    state: _Text = "ready"  #: `starting`, `ready`, `stopping`
    models: tuple[Mapping[str, Json], ...] = ()  #: those loaded: task, model, bytes
    records_per_second: _Number = 0.0  #: over the last minute
    records_done: _Count = 0  #: since it started
    memory_bytes: _Count = 0  #: resident memory of both its processes
    version: _Text = ""
    #: How often each fast path fell back to a slower one.
    fallbacks: Mapping[str, _Count] = msgspec.field(default_factory=dict)
    tokens_done: _Count = 0  #: since it started, of batches that are cut by tokens, padding included
    #: Stage (`tokenize`, `forward`, `encode`, `commit`) -> seconds since it started.
    stage_seconds: Mapping[str, _Number] = msgspec.field(default_factory=dict)
    device_memory_bytes: _Count = 0  #: of the device in use, by any process, when models last came or went
    device_memory_limit_bytes: _Count = 0  #: of the device
    #: In which a CPU computes much faster than in float32, which its worker uses by default; empty if there is none.
    faster_dtype: _Text = ""

    def as_dict(self) -> dict[str, Json]:
        """Return what `--json` shows."""
        return msgspec.structs.asdict(self)


_DECODER = msgspec.json.Decoder(Heartbeat)


def send_heartbeat(client: "redis.Redis", heartbeat: Heartbeat) -> None:
    """Note that this worker is alive."""
    with client.pipeline(transaction=True) as pipe:
        pipe.set(keys.worker(heartbeat.name), msgspec.json.encode(heartbeat), px=int(TTL * 1000))
        pipe.sadd(keys.WORKERS, heartbeat.name)
        pipe.execute()


def remove_heartbeat(client: "redis.Redis", name: str) -> None:
    """Note that this worker has stopped. No transaction: a full Redis would refuse it."""
    with client.pipeline(transaction=False) as pipe:
        pipe.delete(keys.worker(name))
        pipe.srem(keys.WORKERS, name)
        pipe.execute()


def cap_heartbeat_ttls(client: "redis.Redis") -> None:
    """Shorten heartbeats that would last longer than `TTL`: those of dead workers do when Redis's clock is set back."""
    names = [keys.worker(name.decode(errors="replace")) for name in client.smembers(keys.WORKERS)]
    with client.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.pttl(name)
        left = pipe.execute()
    for name, milliseconds in zip(names, left, strict=True):
        if milliseconds > TTL * 1000:
            client.pexpire(name, int(TTL * 1000))


def live_workers(client: "redis.Redis") -> list[Heartbeat]:
    """Return all live workers by name; names of dead ones are removed."""
    names = sorted(name.decode(errors="replace") for name in client.smembers(keys.WORKERS))
    if not names:
        return []
    found = dict(zip(names, client.mget([keys.worker(name) for name in names]), strict=True))
    dead = [name for name, raw in found.items() if raw is None]
    if dead:
        client.srem(keys.WORKERS, *dead)
    return [heartbeat for heartbeat in map(_decode, found.values()) if heartbeat is not None]


def _decode(raw: bytes | None) -> Heartbeat | None:
    try:
        return _DECODER.decode(raw or b"")
    except (ValueError, RecursionError):
        return None  # forged, or of another version: it cannot be relied on


def serving(workers: Iterable[Heartbeat], queue: str) -> list[Heartbeat]:
    """Return the workers that take tickets from `queue`."""
    return [worker for worker in workers if queue in worker.queues]


def target_tickets(workers: Iterable[Heartbeat], queue: str, min_tickets: int, max_tickets: int) -> int:
    """Return how many tickets a job on `queue` keeps: two for each live slot, so that no slot waits for one."""
    return min(max_tickets, max(min_tickets, 2 * sum(worker.slots for worker in serving(workers, queue))))
