"""A template that names a column which no record has: refused at the first records, instead of failing every one.

A table says in its header which columns it has. Objects of JSON do not: any of them may lack any key.
"""

from collections.abc import Iterator
from itertools import chain

from common.errors import UsageError
from common.records import Record

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
