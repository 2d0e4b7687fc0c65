"""`producer wait` and `producer watch`: wait for jobs and follow one."""

import sys

import click

from producer.cli.options import job_argument, jobs_argument, json_option
from producer.cli.session import open_client
from producer.cli.terminal import exit_status, notify, print_json


@click.command()
@jobs_argument
@json_option
def wait(jobs: tuple[str, ...], name: str | None, labels: tuple[str, ...], as_json: bool) -> None:
    """Wait until jobs are finished. The exit status is that of the worst job.

    Give job ids, or select existing jobs with --name and --label. Ctrl-C stops waiting, not the jobs.

    \b
    Exit status:
      0    all records succeeded
      3    some records failed
      1    a job failed or was cancelled
      2    invalid usage
      130  Ctrl-C
    """
    from producer.cli.job_arguments import select_job_ids
    from producer.cli.watch import describe_outcome
    from producer.job_filter import JobFilter, parse_labels

    with open_client() as client:
        ids = select_job_ids(client, jobs, JobFilter(name=name, labels=parse_labels(labels)))
        selected = [client.job(job_id) for job_id in ids]
        if not all(job.state.status.finished for job in selected):
            client.connection.start_worker()
        finished = [job.poll(lambda _: None) for job in selected]
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

    Ctrl-C stops watching, not the job.

    \b
    Exit status:
      0    all records succeeded
      3    some records failed
      1    the job failed or was cancelled
      2    invalid usage
      130  Ctrl-C
    """
    from producer.cli.watch import describe_outcome, watch_job

    with open_client() as client:
        handle = client.job(job)
        if not handle.state.status.finished:
            client.connection.start_worker()
        finished = watch_job(client, handle, notify)
    if as_json:
        print_json(finished.as_dict())
    else:
        notify(describe_outcome(finished))
    sys.exit(exit_status(finished))
