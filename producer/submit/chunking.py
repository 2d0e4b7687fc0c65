"""Chunking: records are cut into chunks, few enough that the queue costs little, enough that every worker gets one.

A chunk passes through Redis and two processes as a whole, costs the queue about two milliseconds, and is run again
when a worker dies.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat

from common.queue.heartbeats import Heartbeat
from common.records import Json, Record

#: Bytes of text in one chunk at most.
CHUNK_BYTES = 1024 * 1024
#: The same for records with files: a batch of images is larger than a batch of texts.
FILE_CHUNK_BYTES = 16 * CHUNK_BYTES
#: Chunks of one size, after which the size doubles.
_CHUNKS_PER_SIZE = 64
#: How far chunks may grow beyond the task's default; a GPU is about sixteen times as fast.
_GROWTH, _GPU_GROWTH = 4, 16
#: A small job is spread over the workers in chunks of at least this many records.
_MIN_SPREAD_RECORDS = 16
#: Bytes of text read ahead at most to find out whether a job is small.
_LOOK_AHEAD_BYTES = 8 * CHUNK_BYTES


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """The sizes of a job's chunks."""

    first: int  #: records of the first chunks at most
    growth: int = 1  #: how many times as large later ones may be
    workers: int = 1  #: over which a small job is spread

    def sizes(self) -> Iterator[int]:
        """Yield the maximum number of records of each chunk, without end."""
        size = self.first
        while size < self.first * self.growth:
            yield from repeat(size, _CHUNKS_PER_SIZE)
            size = min(2 * size, self.first * self.growth)
        yield from repeat(size)


def plan_chunks(requested: int | None, default: int, workers: Sequence[Heartbeat]) -> ChunkPlan:
    """Return the chunk sizes of a job.

    Args:
        requested: Records in a chunk, if the user chose; nothing else counts then.
        default: Records in a chunk, for the job's task.
        workers: The live workers that serve its queue.
    """
    if requested is not None:
        return ChunkPlan(requested)
    on_gpu = bool(workers) and all(worker.device.startswith("cuda") for worker in workers)
    return ChunkPlan(default, _GPU_GROWTH if on_gpu else _GROWTH, max(1, len(workers)))


def cut_chunks(records: Iterable[Record], plan: ChunkPlan) -> Iterator[tuple[list[Record], int]]:
    """Yield chunks with their sizes in bytes: at most as many records as planned and `CHUNK_BYTES`, at least one.

    Reads ahead one chunk of default size for each worker: a job that ends there is shared evenly among them.
    """
    rest = iter(records)
    ahead, ended = _look_ahead(rest, plan.first * plan.workers) if plan.workers > 1 else ([], False)
    sizes = plan.sizes()
    if ended:
        sizes = repeat(min(plan.first, max(_MIN_SPREAD_RECORDS, -(-len(ahead) // plan.workers))))
    yield from _split(chain(ahead, rest), sizes)


def _look_ahead(records: Iterator[Record], limit: int) -> tuple[list[Record], bool]:
    ahead: list[Record] = []
    size = 0
    for record in records:
        ahead.append(record)
        size += size_in_bytes(record)
        if len(ahead) >= limit or size > _LOOK_AHEAD_BYTES:
            return ahead, False
    return ahead, True


def _split(records: Iterator[Record], sizes: Iterator[int]) -> Iterator[tuple[list[Record], int]]:
    chunk: list[Record] = []
    size, limit = 0, next(sizes)
    for record in records:
        more = size_in_bytes(record)
        limit_bytes = CHUNK_BYTES if record.blob is None else FILE_CHUNK_BYTES
        if chunk and (len(chunk) >= limit or size + more > limit_bytes or not _same_table(chunk[-1], record)):
            yield chunk, size
            chunk, size, limit = [], 0, next(sizes)
        chunk.append(record)
        size += more
    if chunk:
        yield chunk, size


def _same_table(one: Record, other: Record) -> bool:
    """Whether one payload holds the own columns of both: JSON, or rows of tables with the same types."""
    first, second = (None if own is None or isinstance(own, Mapping) else own.types for own in (one.own, other.own))
    return first is second or first == second


def size_in_bytes(record: Record) -> int:
    """Return the approximate number of bytes of a record's text and own columns, or of its file."""
    if record.blob is not None:
        return len(record.blob)
    own = record.own
    size = 0 if own is None else sum(map(_size, own.values())) if isinstance(own, Mapping) else own.bytes
    return size + _size(record.input)


def _size(value: Json) -> int:
    if value is None:
        return 0
    text = value if isinstance(value, str) else repr(value)
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
