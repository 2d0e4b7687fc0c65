"""Isolation of the records that crash the device process: which ones to run next, and which have failed.

Records that are not suspected run first, together; then the suspects, isolated: each by itself. A record that crashes
the process twice does not run again.
"""

from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence

from common.records import Failure

#: Deaths after which a record fails: one in a group, one by itself.
_MAX_DEATHS = 2
#: Deaths of a group after which all its records are suspects: the process crashes later than the cause.
_MAX_GROUP_DEATHS = 2


class Isolation:
    """The plan for one chunk; `failures` holds the records that have failed, and why.

    Args:
        positions: of the records to run.
        isolated: run each by itself from the start.
        excluded: positions that must not run, and their failures.
    """

    def __init__(
        self, positions: Sequence[int], *, isolated: bool = False, excluded: Mapping[int, Failure] | None = None
    ) -> None:
        self.failures = {position: why for position, why in (excluded or {}).items() if position in positions}
        positions = [position for position in positions if position not in self.failures]
        self._group = [] if isolated else positions
        self._singles = deque(positions if isolated else ())
        self._deaths: Counter[int] = Counter()
        self._group_deaths = 0

    def next(self) -> list[int]:
        """Return the positions to run now; empty when there are none left."""
        if self._group:
            return list(self._group)
        return [self._singles[0]] if self._singles else []

    def done(self, positions: Collection[int]) -> None:
        """Note that these, which `next` returned, have their outcomes."""
        self._drop(positions)

    def died(self, suspects: Collection[int], failure: Failure) -> None:
        """Note that the process died over what `next` returned.

        Args:
            suspects: the positions that were about to run; none means all.
            failure: of a record for which this was one death too many.
        """
        running = self.next()
        blamed = [position for position in running if position in suspects] or running
        self._deaths.update(blamed)
        self._drop(blamed)
        for position in blamed:
            if self._deaths[position] >= _MAX_DEATHS:
                self.failures[position] = failure
            else:
                self._singles.append(position)
        if len(running) > 1:
            self._suspect_all()

    def _suspect_all(self) -> None:
        self._group_deaths += 1
        if self._group_deaths >= _MAX_GROUP_DEATHS:
            self._singles.extend(self._group)
            self._group = []

    def _drop(self, positions: Collection[int]) -> None:
        gone = set(positions)
        self._group = [position for position in self._group if position not in gone]
        self._singles = deque(position for position in self._singles if position not in gone)
