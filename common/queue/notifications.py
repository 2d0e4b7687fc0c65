"""The queue of notifications: the jobs that have ended and whose URL has not been notified yet.

The step that ends a job adds it, so none is missed. A worker claims a notification for a while before it sends it;
if its outcome is not noted by then, the next attempt follows: delivery is at least once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import redis

from common.display_text import one_line
from common.notifications import NotificationState
from common.redis import keys
from common.redis.scripts import Scripts

#: Characters of an error that are kept.
_MAX_ERROR = 300


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt to send the notification of a job's end."""

    job_id: str
    number: int  #: from 1, for each end
    ended: bytes  #: when the job had ended, as Redis has it: after a retry it ends another time


class NotificationQueue:
    """The notifications of a queue that are to be sent."""

    def __init__(self, client: "redis.Redis") -> None:
        self._client = client
        self._scripts = Scripts(client)

    def due(self, now: float, offset: int, count: int) -> list[str]:
        """Return up to `count` members, job ids as a rule, whose next attempt is due, after the first `offset`."""
        members = self._client.zrangebyscore(keys.NOTIFICATIONS, "-inf", now, start=offset, num=count)
        return [member.decode(errors="surrogateescape") for member in members]

    def claim(self, job_ids: Sequence[str], seconds: float) -> list[Attempt]:
        """Return a new attempt for each of these jobs that has something to send now, and that no worker has claimed.

        Args:
            job_ids: the jobs.
            seconds: after which the next attempt follows, if the outcome of this one is not noted.
        """
        answers = self._scripts.run_each("claim_notification", job_ids, seconds)
        claimed = zip(job_ids, answers, strict=True)
        return [Attempt(job_id, *answer) for job_id, answer in claimed if answer and isinstance(answer, list)]

    def note_delivered(self, attempt: Attempt) -> None:
        """Note that a notification was delivered."""
        self._note(attempt, NotificationState.DELIVERED)

    def note_failure(self, attempt: Attempt, error: str, pause: float | None) -> None:
        """Note that an attempt failed; the next one follows in `pause` seconds, or none if that is None."""
        state = NotificationState.GIVEN_UP if pause is None else NotificationState.PENDING
        self._note(attempt, state, one_line(error, _MAX_ERROR), "" if pause is None else pause)

    def _note(self, attempt: Attempt, state: NotificationState, error: str = "", pause: float | str = "") -> None:
        words = (attempt.number, attempt.ended, state, error, pause)
        self._scripts.run("note_notification", attempt.job_id, *words)

    def drop(self, members: Iterable[str]) -> None:
        """Remove members that name no job."""
        if found := [member.encode(errors="surrogateescape") for member in members]:
            self._client.zrem(keys.NOTIFICATIONS, *found)
