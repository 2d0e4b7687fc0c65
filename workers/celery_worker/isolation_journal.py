"""A write-ahead journal of isolated records: when whole workers die over a chunk, it says which record was running.

The journal is kept in the ledger. A worker has survived a record once the next one begins, with an outcome or with
a crash of the device process, which `workers.device.client.isolation` handles. Each record survived for the first
time counts as progress of the chunk.
"""

from collections import Counter

from common.queue.ledger import Ledger
from common.records import Failure
from workers.device.client.device_client import IsolationPolicy
from workers.leases import HeldLease

#: Deaths of workers over one chunk after which its records run isolated.
ISOLATE_AFTER = 3
#: Deaths of whole workers, with the record running alone, after which it does not run again.
_MAX_DEATHS = 2
_FAILURE = Failure("worker_died", f"Whole workers died {_MAX_DEATHS} times while it ran alone.")


class IsolationJournal:
    """The journal of one leased chunk."""

    def __init__(self, ledger: Ledger, held: HeldLease) -> None:
        self._ledger = ledger
        self._held = held
        self._position: int | None = None

    def policy(self) -> IsolationPolicy:
        """Return how to run the chunk; records that must not run again count as done."""
        deaths = Counter(self._held.retry(lambda: self._ledger.isolated_deaths(self._held.lease)))
        excluded = {position: _FAILURE for position, times in deaths.items() if times >= _MAX_DEATHS}
        for position in excluded:
            self._note(position, None)
        return IsolationPolicy(excluded, self.begin)

    def begin(self, position: int) -> None:
        """Note that this record is about to run, and that the one before it is over."""
        self._note(self._position, position)
        self._position = position

    def end(self) -> None:
        """Note that the last record is over: nothing that happens from now on is blamed on it."""
        self._note(self._position, None)

    def _note(self, done: int | None, now: int | None) -> None:
        lease = self._held.lease
        self._held.retry(lambda: self._ledger.note_isolated(lease, done=done, now=now, kept=ISOLATE_AFTER))
