"""What the log of the embedded worker says about one job."""

import re
from collections.abc import Iterator
from datetime import datetime

from common.jobs import Job
from common.settings import Settings
from producer.embedded.log_files import read_entries
from producer.embedded.state_dir import StateDir

#: The time at the beginning of an entry, as logging and Celery write it; and the ids of jobs.
_TIME = re.compile(r"\[?(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d{3}")
_JOB = re.compile(r"\bjob ([0-9a-f]{12})\b")


def job_entries(job: Job, settings: Settings) -> Iterator[str]:
    """Yield the entries that name the job, and those that name none, of the time in which it ran."""
    for entry in read_entries(StateDir.of(settings).worker_log):
        named = _JOB.findall(entry)
        if job.id in named or (not named and _is_within(entry, job)):
            yield entry.rstrip("\n")


def _is_within(entry: str, job: Job) -> bool:
    found = _TIME.match(entry)
    if found is None:
        return False
    at = datetime.fromisoformat(found[1]).timestamp()
    return int(job.spec.created_at) <= at and (job.finished_at is None or at <= job.finished_at + 1)
