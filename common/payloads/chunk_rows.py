"""The rows of a chunk: its records beside their outcomes, from the payloads of both."""

from collections.abc import Sequence

from common.payloads.codec import overlay
from common.records import Record
from common.results import LOST, ResultRow


def chunk_rows(
    records: Sequence[Record] | None, outcomes: Sequence[bytes | None], *, arrays: bool = False
) -> list[ResultRow]:
    """Return the rows of a chunk from its records and the payloads of its commits, oldest first.

    Args:
        records: of the chunk; None if they cannot be read: rows then have the ids of the outcomes, and no input.
        outcomes: payloads; None for a lost one.
        arrays: return vectors as numpy arrays, for writers.

    Raises:
        PayloadError: one of them is not a payload of outcomes.
    """
    found = overlay([payload for payload in outcomes if payload is not None], arrays=arrays)
    if records is None:
        return [ResultRow(id_, None, outcome) for _, (id_, outcome) in sorted(found.items())]
    absent = LOST if outcomes else None
    return [
        ResultRow(record.id, record.input, found[position][1] if position in found else absent, record.own)
        for position, record in enumerate(records)
    ]
