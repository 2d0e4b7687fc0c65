"""Duplicate ids: counted while records stream by, in bounded memory."""

from collections.abc import Callable, Iterable, Iterator

from common.json_codec import to_json
from common.records import Json, Record

#: After this many different ids, further ones are not remembered: a set of that many hashes takes about 90 MB.
MAX_IDS = 1_000_000


class DuplicateIds:
    """Counts ids that occurred before, by their 64-bit hashes."""

    def __init__(self, max_ids: int = MAX_IDS) -> None:
        self.max_ids = max_ids
        self.count = 0  #: records whose id occurred before
        self.first: Json = None  #: the first such id
        self.complete = True  #: False once an id was not compared, because `max_ids` others are remembered
        self._next = 0  #: ids from 0 up to this one came first, in order: line numbers need no set
        self._seen: set[int] = set()

    def add(self, id_: Json) -> bool:
        """Remember an id; return whether it occurred before."""
        if type(id_) is int and id_ == self._next and not self._seen:
            self._next += 1
            return False
        key = hash(id_ if type(id_) is str else (to_json(id_),))  # the tuple keeps 7 and "7" apart
        if key in self._seen or (type(id_) is int and 0 <= id_ < self._next):
            self.first = id_ if self.count == 0 else self.first
            self.count += 1
            return True
        if len(self._seen) < self.max_ids:
            self._seen.add(key)
        else:
            self.complete = False
        return False

    @property
    def warning(self) -> str | None:
        """A message for the user; None if there are no duplicates."""
        parts = []
        if self.count:
            records = "record has an id" if self.count == 1 else "records have an id"
            parts.append(f"{self.count:,} {records} that came before; the first is {to_json(self.first)}.")
        if not self.complete:
            parts.append(f"Only the first {self.max_ids:,} ids were compared for duplicates.")
        return " ".join(parts) or None


def warn_of_duplicate_ids(records: Iterable[Record], notify: Callable[[str], None]) -> Iterator[Record]:
    """Yield the records unchanged; at the end, call `notify` with the number of duplicate ids and the first one."""
    ids = DuplicateIds()
    for record in records:
        ids.add(record.id)
        yield record
    if ids.warning:
        notify(ids.warning)
