"""How records are cut into chunks: few enough that the queue costs little, enough that all workers have one.

A chunk passes through Redis and two processes whole, costs the queue about two milliseconds, and is what is run again
when a worker dies.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat

from common.queue.heartbeats import Heartbeat
from common.records import Record

#: Bytes of text in one chunk at most.
CHUNK_BYTES = 1024 * 1024
#: The same for chunks of files: a batch of images takes more than a batch of texts.
FILE_CHUNK_BYTES = 16 * CHUNK_BYTES
#: Chunks of a size, after which the next ones are twice as large.
_CHUNKS_PER_SIZE = 64
#: How many times as large as the task says chunks may grow; a GPU does the same records some sixteen times sooner.
_GROWTH, _GPU_GROWTH = 4, 16
#: A small job is spread over the workers in chunks of so many records at least.
_MIN_SPREAD_RECORDS = 16
#: Text that is read ahead at most to see whether a job is small.
_LOOK_AHEAD_BYTES = 8 * CHUNK_BYTES


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """How many records the chunks of a job get."""

    first: int  #: records of the first chunks at most
    growth: int = 1  #: how many times as large later ones may be
    workers: int = 1  #: over which a small job is spread

    def sizes(self) -> Iterator[int]:
        """Yield the most records of each chunk, one after the other, without end."""
        size = self.first
        while size < self.first * self.growth:
            yield from repeat(size, _CHUNKS_PER_SIZE)
            size = min(2 * size, self.first * self.growth)
        yield from repeat(size)


def plan_chunks(requested: int | None, default: int, workers: Sequence[Heartbeat]) -> ChunkPlan:
    """Return how to cut a job.

    Args:
        asked: records of a chunk, if the user said so: then nothing else counts.
        usual: for the job's task.
        workers: the live ones that serve its queue.
    """
    if requested is not None:
        return ChunkPlan(requested)
    on_gpu = bool(workers) and all(worker.device.startswith("cuda") for worker in workers)
    return ChunkPlan(default, _GPU_GROWTH if on_gpu else _GROWTH, max(1, len(workers)))


def cut_chunks(records: Iterable[Record], plan: ChunkPlan) -> Iterator[tuple[list[Record], int]]:
    """Yield chunks of at most as many records as planned and `CHUNK_BYTES` (of files more), one record at least.

    With each comes its `weight`.

    Looks as far ahead as one usual chunk for each worker, no further: of a job that ends there, all get a share.
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
        if chunk and (len(chunk) >= limit or size + more > limit_bytes):
            yield chunk, size
            chunk, size, limit = [], 0, next(sizes)
        chunk.append(record)
        size += more
    if chunk:
        yield chunk, size


def size_in_bytes(record: Record) -> int:
    """Return about how many bytes the record holds, of text or of its file."""
    text = record.input
    if record.blob is not None:
        return len(record.blob)
    if text is None:
        return 0
    if not isinstance(text, str):
        text = repr(text)
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
