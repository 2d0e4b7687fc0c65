"""The backlog of a queue: how much work is left, by queue, task, model and priority."""

from collections.abc import Iterable
from dataclasses import dataclass

from producer.metrics.unfinished import Group, UnfinishedJob

#: Groups that are told apart; the jobs of others count as those of task and model `other`.
MAX_GROUPS = 200
#: Pairs of a task and a model whose speed is remembered.
_MAX_SPEEDS = 1000
#: Seconds of one device for a record, as long as nobody knows better.
ASSUMED_SECONDS = 0.1
OTHER = "other"


@dataclass(slots=True)
class Left:
    """What is left of the jobs of a group."""

    records: int = 0
    chunks: int = 0
    seconds: float = 0.0  #: that one device would need for it


class Backlog:
    """Adds up what is left; remembers groups and speeds from one time to the next.

    A group whose work is done stays with zeros, as an alert or an autoscaler needs to see it fall to zero.
    """

    def __init__(self) -> None:
        self._groups: dict[Group, Left] = {}
        self._speeds: dict[tuple[str, str], float] = {}  # (task, model) -> seconds per record

    def update(self, jobs: Iterable[UnfinishedJob]) -> dict[Group, Left]:
        """Return what is left of these jobs, by group."""
        jobs = [job for job in jobs if job.chunks_left]
        for job in jobs:
            if job.seconds_per_record is not None:
                self._remember(job.group, job.seconds_per_record)
        wanted = {job.group for job in jobs}
        idle = [group for group in self._groups if group not in wanted]
        kept = idle[max(0, len(idle) + len(wanted) - MAX_GROUPS) :]
        found = {group: Left() for group in (*kept, *(group for group in self._groups if group in wanted))}
        for job in jobs:
            self._add(found, job)
        self._groups = found
        return found

    def _add(self, found: dict[Group, Left], job: UnfinishedJob) -> None:
        group = job.group
        speed = job.seconds_per_record or self._speeds.get((group.task, group.model), ASSUMED_SECONDS)
        if group not in found and len(found) >= MAX_GROUPS:
            group = group._replace(task=OTHER, model=OTHER)
        left = found.setdefault(group, Left())
        left.records += job.records_left
        left.chunks += job.chunks_left
        left.seconds += job.records_left * speed

    def _remember(self, group: Group, seconds: float) -> None:
        pair = (group.task, group.model)
        self._speeds.pop(pair, None)
        self._speeds[pair] = seconds
        if len(self._speeds) > _MAX_SPEEDS:
            del self._speeds[next(iter(self._speeds))]
