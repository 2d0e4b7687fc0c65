"""`producer submit --dry-run`: reads everything and tells what would be done."""

from dataclasses import asdict, dataclass

from common.errors import StoreUnavailable
from common.values import Failure, Json, visible
from producer.chunks import cut_chunks
from producer.plan import Plan
from producer.submission import Totals, check_size
from producer.supply import Piece

#: Bad records that are shown.
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Report:
    """What submitting would do."""

    task: str
    model: str | None
    revision: str | None
    queue: str
    chunk_records: int  #: in the largest chunk
    records: int
    chunks: int
    bytes: int  #: of text
    bad: int  #: records that cannot be read
    bad_examples: tuple[Failure, ...]  #: the first of them
    served: bool | None  #: whether a live worker takes them; None where that is not known
    who_serves: str  #: the same in words

    def as_dict(self) -> dict[str, Json]:
        """Return what `--json` shows."""
        return asdict(self)

    def as_text(self) -> str:
        """Return it for people."""
        lines = {
            "task": self.task,
            "model": (self.model or "none") + (f" @ {self.revision}" if self.revision else ""),
            "records": f"{self.records:,}",
            "chunks": f"{self.chunks:,} of up to {self.chunk_records:,} records",
            "bytes": f"{self.bytes:,} of text",
            "bad": f"{self.bad:,} records that cannot be read" + (", the first ones:" if self.bad else ""),
        }
        text = [f"{key:<8} {value}" for key, value in lines.items()]
        text += [f"         {failure.code}: {failure.message}" for failure in self.bad_examples]
        return visible("\n".join([*text, f"{'queue':<8} {self.queue}: {self.who_serves}", "Nothing was submitted."]))


def make_report(plan: Plan) -> Report:
    """Return what submitting would do; nothing is written anywhere.

    Raises:
        UsageError: the input cannot be read to its end, or is larger than one job may be.
    """
    totals = Totals()
    bad: list[Failure] = []
    largest = 0
    for chunk, held in cut_chunks(plan.records(), plan.chunks()):
        totals.add(Piece.of(chunk, held))
        largest = max(largest, len(chunk))
        check_size(totals, plan.settings)
        bad += [record.failure for record in chunk if record.failure][: _SHOWN - len(bad)]
    served, who = _who_serves(plan)
    spec = plan.spec
    return Report(
        task=spec.task,
        model=spec.model,
        revision=spec.revision,
        queue=spec.queue,
        chunk_records=largest,
        records=totals.records,
        chunks=totals.chunks,
        bytes=totals.bytes,
        bad=totals.bad,
        bad_examples=tuple(bad),
        served=served,
        who_serves=who,
    )


def _who_serves(plan: Plan) -> tuple[bool | None, str]:
    if plan.settings.embedded:
        return None, "an embedded Redis and worker would be started"
    from producer.connection import Connection

    try:
        connection = Connection(plan.settings)
        connection.check()
        if connection.serves(plan.spec.queue):
            return True, "a live worker serves it"
        return False, "no live worker serves it"
    except StoreUnavailable as error:
        return None, str(error)
