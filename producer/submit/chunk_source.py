"""Where the chunks of a job come from: records that are copied, or ranges of files that workers read in place."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, starmap

from common.inputs import Inputs
from common.inputs.file_split import FileSplit, SizedSplit
from common.inputs.sources import ReadProgress
from common.inputs.splitting import split_source, splittable_builders, splittable_bytes
from common.json_codec import to_json
from common.queue.heartbeats import Heartbeat
from common.records import Record
from producer.submit.chunking import CHUNK_BYTES, ChunkPlan, cut_chunks, size_in_bytes
from producer.submit.plan import SubmitPlan

#: So many records tell one input from another.
_HEAD = 50
#: Records that are passed over at once.
_SOME = 1000


@dataclass(frozen=True, slots=True)
class ChunkContent:
    """Some consecutive records on their way into the store: those of a chunk."""

    content: Sequence[Record] | FileSplit
    records: int
    text_bytes: int  #: about
    bad: int = 0  #: records that could not be read; of a range nobody knows yet

    @classmethod
    def of(cls, records: Sequence[Record], text_bytes: int) -> "ChunkContent":
        """Return the piece of these records, which weigh so much."""
        return cls(records, len(records), text_bytes, len([1 for record in records if record.failure is not None]))

    @property
    def is_split(self) -> bool:
        """Whether the records are not copied."""
        return isinstance(self.content, FileSplit)

    def encode(self) -> bytes:
        """Return the payload of a chunk."""
        if isinstance(self.content, FileSplit):
            return self.content.encode()
        from common.payloads.codec import encode_records  # pyarrow, which who looks at jobs does not need

        return encode_records(self.content)


class Digest:
    """A running digest of pieces, however records are cut: by it, one input is known from another."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, content: ChunkContent) -> str:
        """Add a piece; return the digest of all so far, in hexadecimal."""
        if isinstance(content.content, FileSplit):
            self._hash.update(content.content.encode())
            return self._hash.hexdigest()
        for record in content.content:
            code = record.failure.code if record.failure else None
            self._hash.update(to_json([record.id, record.input, code]).encode() + b"\n" + (record.blob or b""))
        return self._hash.hexdigest()


class ChunkSource(ABC):
    """The records of one job, to be taken once, in order."""

    @abstractmethod
    def head(self) -> str:
        """Return a digest of how the records begin; they are still there to be taken."""

    @abstractmethod
    def take(self, most: int) -> ChunkContent | None:
        """Take up to so many records, of no chunk; None where there are no more."""

    @abstractmethod
    def chunks(self) -> Iterator[ChunkContent]:
        """Take all that is left, cut into chunks."""

    @abstractmethod
    def share(self) -> float:
        """Return about which share of all was taken; 1 where nobody knows how much there is."""


class RecordChunkSource(ChunkSource):
    """Records that are copied into the store."""

    def __init__(self, records: Iterable[Record], plan: ChunkPlan, progress: ReadProgress) -> None:
        """Take records from `records`, which are being made of what `reading` counts."""
        self._records = iter(records)
        self._plan = plan
        self._progress = progress

    def head(self) -> str:
        """Return a digest of the first records."""
        first = list(islice(self._records, _HEAD))
        self._records = chain(first, self._records)
        return Digest().add(_content_of(first))

    def take(self, most: int) -> ChunkContent | None:
        """Take up to so many records."""
        some = list(islice(self._records, min(_SOME, most)))
        return _content_of(some) if some else None

    def chunks(self) -> Iterator[ChunkContent]:
        """Take all that is left, cut as planned."""
        return starmap(ChunkContent.of, cut_chunks(self._records, self._plan))

    def share(self) -> float:
        """Return about which share was taken: what was read is a little more."""
        return self._progress.share


def _content_of(records: Sequence[Record]) -> ChunkContent:
    return ChunkContent.of(records, sum(map(size_in_bytes, records)))


class SplitChunkSource(ChunkSource):
    """Ranges of files, cut already: equal files give equal ranges."""

    def __init__(self, cuts: Iterable[SizedSplit], size: int) -> None:
        """Take ranges from `cuts`, of so many bytes in all."""
        self._chunks: Iterator[ChunkContent] = (self._content(cut) for cut in cuts)
        self._progress = ReadProgress(size)

    def _content(self, cut: SizedSplit) -> ChunkContent:
        self._progress.read += cut.bytes
        return ChunkContent(cut.rows, cut.records, cut.bytes)

    def head(self) -> str:
        """Return a digest of the first range."""
        first = list(islice(self._chunks, 1))
        digest = Digest().add(first[0]) if first else ""
        self._chunks = chain(first, self._chunks)
        return digest

    def take(self, most: int) -> ChunkContent | None:
        """Take a range, whole."""
        return next(self._chunks, None)

    def chunks(self) -> Iterator[ChunkContent]:
        """Take all ranges that are left."""
        return self._chunks

    def share(self) -> float:
        """Return which share was taken."""
        return self._progress.share


def open_source(plan: SubmitPlan, records: Iterable[Record], workers: Sequence[Heartbeat]) -> ChunkSource:
    """Return the chunks of a submit: splits of the inputs if workers can read those themselves, else the records.

    Args:
        plan: Of the submit.
        records: Those of its inputs.
        workers: The live workers that serve the job's queue.
    """
    builders = []
    if isinstance(plan.inputs, Inputs) and plan.spec.limit is None:
        builders = splittable_builders(plan.inputs, plan.settings.shared)
    if not builders:
        return RecordChunkSource(records, plan.chunk_plan(workers), plan.progress)
    most, sizes = plan.settings.max_record_bytes, plan.chunk_plan().sizes
    splits = (split for builder in builders for split in split_source(builder, most, sizes(), CHUNK_BYTES))
    return SplitChunkSource(splits, sum(map(splittable_bytes, builders)))
