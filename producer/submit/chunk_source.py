"""Chunk source: copied records, or splits of files that workers read in place."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import starmap

from common.inputs import Inputs
from common.inputs.file_split import FileSplit, SizedSplit
from common.inputs.job_split import JobSplit
from common.inputs.sources import ReadProgress
from common.inputs.splitting import split_source, splittable_builders, splittable_bytes
from common.queue.heartbeats import Heartbeat
from common.records import Record
from producer.submit.chunking import CHUNK_BYTES, ChunkPlan, cut_chunks
from producer.submit.plan import SubmitPlan


@dataclass(frozen=True, slots=True)
class ChunkContent:
    """The records of one chunk on their way into the queue, or the split of a file or a job that holds them."""

    content: Sequence[Record] | FileSplit | JobSplit
    records: int
    text_bytes: int  #: about
    bad: int = 0  #: records that could not be read; unknown for a split

    @classmethod
    def of(cls, records: Sequence[Record], text_bytes: int) -> "ChunkContent":
        """Return the content made of these records, which hold about `text_bytes` bytes of text."""
        return cls(records, len(records), text_bytes, len([1 for record in records if record.failure is not None]))

    @property
    def is_split(self) -> bool:
        """Whether the records are not copied."""
        return isinstance(self.content, FileSplit | JobSplit)

    def encode(self) -> tuple[bytes, bytes | None]:
        """Return the payload of a chunk, and that of its records' own columns if there are any."""
        if isinstance(self.content, FileSplit | JobSplit):
            return self.content.encode(), None
        from common.payloads.codec import encode_records  # pyarrow, which commands that only look at jobs do not need
        from common.payloads.own_columns import encode_own

        return encode_records(self.content), encode_own(self.content)


@dataclass(frozen=True, slots=True)
class ChunkSource:
    """The chunks of one job, to be taken once, in order."""

    chunks: Iterator[ChunkContent]
    progress: ReadProgress  #: of the inputs, a little ahead of the chunks

    @classmethod
    def of_records(cls, records: Iterable[Record], plan: ChunkPlan, progress: ReadProgress) -> "ChunkSource":
        """Return the chunks of records that are copied; reading them moves `progress`."""
        return cls(starmap(ChunkContent.of, cut_chunks(records, plan)), progress)

    @classmethod
    def of_splits(cls, splits: Iterable[SizedSplit], size: int) -> "ChunkSource":
        """Return a chunk for each split; together they have `size` bytes."""
        progress = ReadProgress(size)

        def contents() -> Iterator[ChunkContent]:
            for split in splits:
                progress.read += split.bytes
                yield ChunkContent(split.rows, split.records, split.bytes)

        return cls(contents(), progress)


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
        return ChunkSource.of_records(records, plan.chunk_plan(workers), plan.progress)
    max_bytes, sizes = plan.settings.max_record_bytes, plan.chunk_plan().sizes
    splits = (split for builder in builders for split in split_source(builder, max_bytes, sizes(), CHUNK_BYTES))
    return ChunkSource.of_splits(splits, sum(map(splittable_bytes, builders)))
