"""Ids that occur twice: noticed while records stream by, in bounded memory."""

from array import array
from collections.abc import Callable, Iterable, Iterator

from common.json_codec import to_json
from common.records import Json, Record

#: Beyond so many ids nothing more is remembered: at 8 bytes a hash and half a table full, 64 MB.
MAX_IDS = 4_000_000

_WORD = 0xFFFF_FFFF_FFFF_FFFF


class DuplicateIds:
    """Remembers a hash of each id in an open-addressing table: a Python set would take eight times the memory."""

    def __init__(self, max_ids: int = MAX_IDS) -> None:
        self.max_ids = max_ids
        self.seen = 0  #: different ids in the table
        self.count = 0  #: records whose id came before
        self.first: Json = None  #: the first such id
        self.complete = True  #: False once an id was not compared, because the table was full
        self._next = 0  #: ids from 0 up to this one came first, in order: so do line numbers, which need no table
        self._table = array("Q", bytes(8 * 1024))

    def add(self, id_: Json) -> bool:
        """Take note of an id; return whether it came before."""
        if type(id_) is int and 0 <= id_ <= self._next:
            if id_ < self._next:
                return self._again(id_)
            if not self.seen:
                self._next += 1
                return False
        key = _hash(id_)
        slot = self._slot(key)
        if self._table[slot] == key:
            return self._again(id_)
        if self.seen >= self.max_ids:
            self.complete = False
            return False
        self._table[slot] = key
        self.seen += 1
        if 2 * self.seen > len(self._table):
            self._grow()
        return False

    def _again(self, id_: Json) -> bool:
        self.first = id_ if self.count == 0 else self.first
        self.count += 1
        return True

    @property
    def warning(self) -> str | None:
        """What to tell the user, or None."""
        parts = []
        if self.count:
            again = "record has an id" if self.count == 1 else "records have an id"
            parts.append(f"{self.count:,} {again} that came before; the first is {to_json(self.first)}.")
        if not self.complete:
            parts.append(f"Only the first {self.max_ids:,} ids were compared for duplicates.")
        return " ".join(parts) or None

    def _slot(self, key: int) -> int:
        """Return where the key is, or where it would go."""
        table = self._table
        mask = len(table) - 1
        slot = key & mask
        while table[slot] not in (0, key):
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        old, self._table = self._table, array("Q", bytes(2 * 8 * len(self._table)))
        for key in old:
            if key:
                self._table[self._slot(key)] = key


def _hash(id_: Json) -> int:
    """Return 64 bits, not 0; 7 and "7" stay apart."""
    if type(id_) is str:
        return hash(id_) & _WORD or 1
    text = str(id_) if type(id_) is int else to_json(id_)  # of numbers themselves, -1 and -2 have the same hash
    return hash((text,)) & _WORD or 1


def warn_of_duplicate_ids(records: Iterable[Record], on_duplicate: Callable[[str], None]) -> Iterator[Record]:
    """Yield the records as they are; at the end tell `on_duplicate` of duplicate ids: how many, and the first."""
    ids = DuplicateIds()
    for record in records:
        ids.add(record.id)
        yield record
    if ids.warning:
        on_duplicate(ids.warning)
