"""Exit status: what a command tells the shell. Those of wrong usage (2) and of errors (1) come with `common.errors`."""

from typing import TYPE_CHECKING

from common.jobs import JobStatus

if TYPE_CHECKING:
    from common.jobs import Job
    from producer.submit.dry_run import DryRunReport

#: The job was completed, and some of its records failed.
SOME_FAILED = 3


def exit_status(job: "Job") -> int:
    """Return the exit status that tells how a finished job went."""
    if job.status is not JobStatus.COMPLETED:
        return 1
    return SOME_FAILED if job.counts.failed else 0


def dry_run_status(report: "DryRunReport") -> int:
    """Return how `submit --dry-run` ends: 1 if nothing serves the job, 3 if records are bad."""
    if not report.served:
        return 1
    return SOME_FAILED if report.bad else 0
