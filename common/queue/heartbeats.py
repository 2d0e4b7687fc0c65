"""Heartbeats: what each worker says of itself every few seconds, and who is alive by it."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

import redis

from common.records import Json
from common.redis import keys
from common.text import replace_control_chars

#: Seconds after which a silent worker counts as gone.
TTL = 15.0

_TEXTS = ("name", "device", "device_name", "host", "state", "version")
_NUMBERS = ("pid", "started_at", "records_per_second", "records_done", "memory_bytes")
#: Beyond these a heartbeat is no true one; a job gets tickets by the number of slots.
_HUGE, _MOST_SLOTS = 1e18, 1000


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """One worker as it last described itself."""

    name: str
    device: str  #: `cpu`, `cuda:0`
    device_name: str  #: as the maker calls it
    queues: tuple[str, ...]
    slots: int  #: chunks it keeps in hand at once
    pid: int
    host: str
    started_at: float
    state: str = "ready"  #: `starting`, `ready`, `stopping`
    models: tuple[Mapping[str, Json], ...] = ()  #: those loaded: task, model, bytes
    records_per_second: float = 0.0  #: over the last minute
    records_done: int = 0  #: since it started
    memory_bytes: int = 0  #: resident memory of both its processes
    version: str = ""
    fallbacks: Mapping[str, int] = field(default_factory=dict)  #: how often each fast path fell back to a slower one

    def as_dict(self) -> dict[str, Json]:
        """Return what `--json` shows."""
        return asdict(self)


def send_heartbeat(client: "redis.Redis", heartbeat: Heartbeat) -> None:
    """Say that this worker lives."""
    with client.pipeline(transaction=True) as pipe:
        pipe.set(keys.worker(heartbeat.name), json.dumps(heartbeat.as_dict()), px=int(TTL * 1000))
        pipe.sadd(keys.WORKERS, heartbeat.name)
        pipe.execute()


def remove_heartbeat(client: "redis.Redis", name: str) -> None:
    """Say that this worker has stopped. No transaction: a full Redis would refuse it."""
    with client.pipeline(transaction=False) as pipe:
        pipe.delete(keys.worker(name))
        pipe.srem(keys.WORKERS, name)
        pipe.execute()


def cap_heartbeat_ttls(client: "redis.Redis") -> None:
    """See that no heartbeat lasts longer than `TTL`, as those of dead workers do when Redis's clock is set back."""
    names = [keys.worker(name.decode(errors="replace")) for name in client.smembers(keys.WORKERS)]
    with client.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.pttl(name)
        left = pipe.execute()
    for name, milliseconds in zip(names, left, strict=True):
        if milliseconds > TTL * 1000:
            client.pexpire(name, int(TTL * 1000))


def live_workers(client: "redis.Redis") -> list[Heartbeat]:
    """Return all live workers by name; names of dead ones are cleared away."""
    names = sorted(name.decode(errors="replace") for name in client.smembers(keys.WORKERS))
    if not names:
        return []
    found = dict(zip(names, client.mget([keys.worker(name) for name in names]), strict=True))
    dead = [name for name, raw in found.items() if raw is None]
    if dead:
        client.srem(keys.WORKERS, *dead)
    return [send_heartbeat for send_heartbeat in map(_decode, found.values()) if send_heartbeat is not None]


def _decode(raw: bytes | None) -> Heartbeat | None:
    try:
        values = json.loads(raw or b"")
        values["queues"] = tuple(values["queues"])
        values["models"] = tuple(values["models"])
        heartbeat = Heartbeat(**values)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None  # of another version: it cannot be counted on
    return heartbeat if _is_sound(heartbeat) else None


def _is_sound(heartbeat: Heartbeat) -> bool:
    """Whether every field is what it should be: whoever can write to Redis can write heartbeats."""
    texts = [getattr(heartbeat, name) for name in _TEXTS] + list(heartbeat.queues)
    numbers = [getattr(heartbeat, name) for name in _NUMBERS]
    return (
        all(isinstance(text, str) and replace_control_chars(text) == text for text in texts)
        and all(isinstance(number, int | float) and abs(number) < _HUGE for number in numbers)
        and isinstance(heartbeat.slots, int)
        and 0 <= heartbeat.slots <= _MOST_SLOTS
        and all(isinstance(model, dict) for model in heartbeat.models)
        and isinstance(heartbeat.fallbacks, dict)
        and all(isinstance(times, int) for times in heartbeat.fallbacks.values())
    )


def serving(workers: Iterable[Heartbeat], queue: str) -> list[Heartbeat]:
    """Return the workers that take tickets from `queue`."""
    return [worker for worker in workers if queue in worker.queues]


def target_tickets(workers: Iterable[Heartbeat], queue: str, least: int, most: int) -> int:
    """Return how many tickets a job on `queue` keeps: two for each live slot, so that no slot waits for one."""
    return min(most, max(least, 2 * sum(worker.slots for worker in serving(workers, queue))))
