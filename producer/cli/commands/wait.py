"""`producer wait` and `watch`."""

import sys

import click

from producer.cli.exit_status import exit_status
from producer.cli.options import job_argument, jobs_argument, json_option
from producer.cli.session import open_client
from producer.cli.terminal import notify, print_json


@click.command()
@jobs_argument
@json_option
def wait(jobs: tuple[str, ...], name: str | None, labels: tuple[str, ...], as_json: bool) -> None:
    """Wait until jobs are finished; the exit status is that of the worst.

    Name them, or choose them by --name and --label among those there are now. Ctrl-C stops the waiting, not the jobs.

    \b
    Exit status:
      0    every record succeeded
      3    some records failed
      1    a job failed or was cancelled
      2    wrong usage
      130  after Ctrl-C
    """
    from producer.cli.job_arguments import select_jobs
    from producer.cli.watch import describe_outcome
    from producer.job_filter import JobFilter, parse_labels

    with open_client() as client:
        chosen = select_jobs(client, jobs, JobFilter(name=name, labels=parse_labels(labels)))
        if not all(job.state.status.finished for job in chosen):
            client.connection.start_worker()
        finished = [job.poll(lambda _: None) for job in chosen]
    if as_json:
        print_json([job.as_dict() for job in finished])
    else:
        for job in finished:
            notify(describe_outcome(job))
    # From best to worst: 0, 3, 1.
    sys.exit(max(map(exit_status, finished), key=(0, 3, 1).index))


@click.command()
@job_argument
@json_option
def watch(job: str, as_json: bool) -> None:
    """Watch a job's progress until it is finished.

    Ctrl-C stops the watching, not the job.

    \b
    Exit status:
      0    every record succeeded
      3    some records failed
      1    the job failed or was cancelled
      2    wrong usage
      130  after Ctrl-C
    """
    from producer.cli.watch import describe_outcome, follow

    with open_client() as client:
        handle = client.job(job)
        if not handle.state.status.finished:
            client.connection.start_worker()
        finished = follow(client, handle, notify)
    if as_json:
        print_json(finished.as_dict())
    else:
        notify(describe_outcome(finished))
    sys.exit(exit_status(finished))
