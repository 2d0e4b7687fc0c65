"""Records whose texts a template makes: whether any record has its columns, and how much text they are together.

A table says in its header which columns it has. Objects of JSON do not: any of them may lack any key.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

from common.errors import UsageError
from common.inputs.sources import Source
from common.records import Failure, Record
from common.template import TEMPLATE_FIELD

#: Records that are read before the others; each may be large.
_FIRST = 16


def refuse_unknown_columns(records: Iterator[Record]) -> Iterator[Record]:
    """Read the first records, and return all of them; after one that has all columns, others fail alone.

    Raises:
        UsageError: none of the first records has all columns.
    """
    held: list[Record] = []
    for record in records:
        held.append(record)
        if record.failure is None or len(held) == _FIRST:
            break
    failures = [record.failure for record in held if record.failure]
    lacking = [failure.message for failure in failures if failure.code == "missing_field"]
    if lacking and len(failures) == len(held):
        raise UsageError(f"{lacking[0]}.")
    return chain(held, records)


def limit_text(records: Iterator[Record], source: Source, max_chars: int) -> Iterator[Record]:
    """Yield the records; from the one on with which their texts exceed `max_chars` characters together, they fail.

    A template may be longer than the rows that it is rendered for, and may name a long column many times.
    """
    left = max_chars
    for record in records:
        text = record.input.get(TEMPLATE_FIELD) if isinstance(record.input, dict) else record.input
        left -= len(text) if record.failure is None and isinstance(text, str) else 0
        if left >= 0 or record.failure:
            yield record
        else:
            what = "the chunk is full before this record's text; use a smaller --chunk-size"
            yield replace(record, input=None, failure=Failure("too_large", f"{source.label}: {what}"))
