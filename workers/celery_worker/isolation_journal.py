"""Which record of a chunk runs alone, noted in the ledger: when whole workers die, it says which record it was."""

from collections import Counter

from common.queue.ledger import Ledger
from common.records import Failure
from workers.device.client.client import IsolationPolicy
from workers.leases import HeldLease

#: Deaths of workers over one chunk after which its records are run one by one.
SERIAL_AFTER = 3
#: A record that ran alone at so many deaths of whole workers is not run again.
_DEATHS = 2
_FAILURE = Failure("worker_died", f"Whole workers died {_DEATHS} times while it ran alone.")


class IsolationJournal:
    """The notes of one turn at a chunk whose records are run one by one.

    The worker has survived a record once the next one begins: be it with an outcome, or with a death of the device
    process, which is `workers.device.client.isolation`'s matter. Each record survived for the first time is a step
    forward.
    """

    def __init__(self, ledger: Ledger, held: HeldLease) -> None:
        self._ledger = ledger
        self._held = held
        self._position: int | None = None

    def caution(self) -> IsolationPolicy:
        """Return what is known of the chunk; records that are not to be run again count as done."""
        deaths = Counter(self._held.retry_while_unavailable(lambda: self._ledger.isolated_deaths(self._held.lease)))
        excluded = {position: _FAILURE for position, times in deaths.items() if times >= _DEATHS}
        for position in excluded:
            self._note(position, None)
        return IsolationPolicy(excluded, self.begin)

    def begin(self, position: int) -> None:
        """Note that this record is about to run, and that the one before it is over."""
        self._note(self._position, position)
        self._position = position

    def end(self) -> None:
        """Note that the last record is over: what happens from now on is nothing to it."""
        self._note(self._position, None)

    def _note(self, done: int | None, now: int | None) -> None:
        lease = self._held.lease
        self._held.retry_while_unavailable(
            lambda: self._ledger.note_isolated(lease, done=done, now=now, kept=SERIAL_AFTER)
        )
