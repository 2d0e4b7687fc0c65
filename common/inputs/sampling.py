"""Sampling: the own columns of an input and their types, from its first records."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice

from common.errors import UsageError
from common.inputs.record_builder import RecordBuilder
from common.json_codec import to_json
from common.own_columns import TEXT, Keep, arrow_column, infer_columns, own_columns
from common.records import Record

#: Records, and bytes of their columns as JSON, that are looked at.
SAMPLE_RECORDS, SAMPLE_BYTES = 1000, 4 * 1024 * 1024


def columns_of(records: Iterator[Record], builder: RecordBuilder, limit: int = SAMPLE_RECORDS) -> dict[str, str]:
    """Return the own columns that the records of one source keep, and their types.

    Args:
        records: of the source; at least one is read.
        builder: what builds them.
        limit: records that are read at most; a pipe may be slow.

    Raises:
        UsageError: there are none, a column that `--keep` names is in none of them, or one has the name of an added
            column.
    """
    first = next(records, None)
    if first is None:
        raise UsageError(f"Empty input: {builder.source.label} contains no records.")
    sample = chain([first], islice(records, limit - 1))
    if builder.source.format == "txt":
        return file_columns(builder.field, builder.keep, builder.source.label)
    if builder.keep.names == ():
        return {}
    rows = []
    for record in _bounded(sample):
        if record.failure is not None:
            if record.failure.code == "column_clash":
                raise UsageError(f"{record.failure.message}.")
            continue
        if record.own is not None and not isinstance(record.own, Mapping):
            return {name: arrow_column(kind) for name, kind in record.own.types.items()}
        rows.append(own_columns(record.own, record.input, builder.field))
    found = infer_columns(rows)
    if builder.source.format in ("csv", "tsv"):
        found = dict.fromkeys(found, TEXT)
    builder.keep.check([*found, *(builder.keep.names or ())] if limit == 1 else list(found), builder.source.label)
    return dict(builder.keep.own(found))


def file_columns(name: str, keep: Keep, label: str) -> dict[str, str]:
    """Return the kept columns, and their types, of records that are a line of text or a file: `name` or none.

    Raises:
        UsageError: as for `columns_of`.
    """
    keep.check([name], label)
    return dict(keep.own({name: TEXT}))


def _bounded(records: Iterable[Record]) -> Iterator[Record]:
    """Yield the records until they take too many bytes."""
    size = 0
    for record in records:
        if size > SAMPLE_BYTES:
            return
        size += len(to_json(record.input)) + (len(to_json(record.own)) if isinstance(record.own, Mapping) else 0)
        yield record
