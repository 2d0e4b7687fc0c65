"""`producer submit`."""

import sys
from typing import Any

import click

from common.jobs import DTYPES
from producer.cli.grouped_command import GroupedCommand
from producer.cli.options import (
    csv_safe_option,
    keep_alive_option,
    label_option,
    name_option,
    output_option,
    part_format_option,
    priority_option,
    quoting_option,
    revision_option,
    task_option,
)
from producer.cli.session import open_client
from producer.cli.terminal import notify, print_json

_GROUPS = {
    "Input": ("--task", "--column", "--id-column", "--format", "--quoting", "--limit"),
    "Model": ("-m", "--revision", "--dtype", "-p"),
    "Output": ("-o", "--output-format", "--csv-safe", "--wait", "--json"),
    "Job": (
        "--name",
        "-l",
        "--priority",
        "--device",
        "--chunk-size",
        "--max-errors",
        "--idempotency-key",
        "--store",
        "--keep-alive",
        "--dry-run",
    ),
}


@click.command(cls=GroupedCommand, groups=_GROUPS, no_args_is_help=True)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@task_option(help="What to do with each record; `producer tasks` lists them.  [required, but for --format openai]")
@click.option(
    "-m",
    "--model",
    "--model-id",
    metavar="ID|PATH|job:ID",
    help="A hub id, a directory, or what a job trained.  [default: the task's]",
)
@revision_option
@output_option
@part_format_option
@csv_safe_option
@click.option("--wait/--no-wait", default=None, help="Wait for the end and print the results, or do not.")
@click.option(
    "--store", metavar="URL", help="Where the records and outcomes are kept.  [default: HUGQUEUE_STORE_URL, else Redis]"
)
@name_option
@label_option()
@priority_option
@click.option("--column", metavar="NAME", help="The column that holds the input.")
@click.option(
    "--id-column", metavar="NAME", help="The column that holds the id.  [default: id, custom_id, or the line]"
)
@click.option("-p", "--param", "params", multiple=True, metavar="KEY=VALUE", help="Parameter of the task, as top_k=3.")
@click.option(
    "--dtype", type=click.Choice(DTYPES), help="What the model computes in.  [default: the worker's, as `auto` is]"
)
@click.option("--limit", type=int, metavar="N", help="Take only the first N records.")
@click.option(
    "--format",
    "format",
    type=click.Choice(["txt", "jsonl", "json", "csv", "tsv", "parquet", "openai"]),
    help="What the inputs hold; for standard input, against the extension, or as OpenAI's batch files.",
)
@quoting_option
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "gpu"]),
    default="auto",
    show_default=True,
    help="Which workers may do it.",
)
@click.option("--chunk-size", type=int, metavar="N", help="Records in one chunk at most.")
@click.option("--max-errors", metavar="N|P%", help="End the job early once more records than that have failed.")
@click.option(
    "--idempotency-key",
    metavar="KEY",
    help="Make one job of all submits with this key; one that was cut off goes on where it stopped.",
)
@keep_alive_option
@click.option("--dry-run", is_flag=True, help="Read everything, report what would be done, and touch nothing.")
@click.option("--json", "as_json", is_flag=True, help="JSON on a terminal too: result lines, the job, or the report.")
def submit(
    inputs: tuple[str, ...],
    labels: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    keep_alive: str | None,
    **options: Any,
) -> None:
    """Send records through a model.

    INPUT is a .txt (one record a line), .jsonl, .json, .csv, .tsv or .parquet file, also gzipped, or - for standard
    input; an address, as s3://bucket/texts/*.parquet; a data set of the hub, as hf:ORG/NAME:train; for tasks over
    images or sound, the files themselves, directories of them, or lists of their paths.

    On a queue of your own this prints the job's id and returns. With --wait or -o, or with no queue configured,
    it waits and gives the results: a table on a terminal, JSON lines in a pipe.

    \b
      producer submit --task fill-mask sentences.txt
      producer submit --task embedding articles.jsonl --column body -o vectors.npy
      producer submit --task text-generation chat.jsonl -m org/model -p seed=1
      producer submit --format openai requests.jsonl -o responses.jsonl
      cat reviews.txt | producer submit --task sentiment-analysis - > labels.jsonl

    \b
    Exit status:
      0    every record succeeded (or, without waiting, the job was accepted)
      3    some records failed (--dry-run: cannot be read)
      1    the job failed or was cancelled (--dry-run: nothing could serve it)
      2    wrong usage or input
      130  after Ctrl-C
    """
    from producer.job_filter import parse_labels
    from producer.submit.options import SubmitOptions
    from producer.submit.plan import make_plan

    plan = make_plan(inputs, SubmitOptions(labels=parse_labels(labels), **options))
    if dry_run:
        from producer.cli.exit_status import dry_run_status
        from producer.submit.dry_run import make_dry_run_report

        report = make_dry_run_report(plan, notify)
        if as_json:
            print_json(report.as_dict())
        else:
            click.echo(report.as_text())
        sys.exit(dry_run_status(report))
    if "-" in inputs and sys.stdin.isatty():
        notify("Reading records from the terminal, one a line; Ctrl-D ends them.")
    records = plan.peek_records()
    with open_client(working=True, replace_outdated=True, keep_alive=keep_alive) as client:
        from producer.cli.run_submit import run

        sys.exit(run(client, plan, records, notify, as_json=as_json))
