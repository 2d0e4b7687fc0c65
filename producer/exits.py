"""Exit status: what a command tells the shell. Those of wrong usage (2) and of errors (1) come with `common.errors`."""

from typing import TYPE_CHECKING

from common.values import JobStatus

if TYPE_CHECKING:
    from common.jobs import Job

#: The job was completed, and some of its records failed.
SOME_FAILED = 3


def exit_status(job: "Job") -> int:
    """Return the exit status that tells how a finished job went."""
    if job.status is not JobStatus.COMPLETED:
        return 1
    return SOME_FAILED if job.counts.failed else 0
