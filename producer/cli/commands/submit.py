"""`producer submit`: submits a job of inputs."""

import sys
from typing import Any

import click

from common.jobs import DTYPES
from producer.cli.grouped_command import GroupedCommand, option_group
from producer.cli.options import (
    after_any_option,
    after_option,
    csv_safe_option,
    keep_alive_option,
    label_option,
    name_option,
    notify_option,
    output_option,
    param_option,
    part_format_option,
    priority_option,
    public_option,
    quoting_option,
    revision_option,
    task_option,
)
from producer.cli.session import open_client
from producer.cli.terminal import dry_run_status, notify, print_json
from producer.cli.text_option import text_option


@click.command(cls=GroupedCommand, no_args_is_help=True)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@option_group(
    "Input",
    task_option(help="The task to run; `producer tasks` lists them.  [required, except with --format openai]"),
    click.option("--column", metavar="NAME", help="Column that holds the input."),
    text_option("--template", "Text made from columns, such as 'Classify: {title}'."),
    click.option(
        "--id-column",
        metavar="NAME",
        help="Column that holds the record id.  [default: id, custom_id, or the line number]",
    ),
    click.option(
        "--format",
        type=click.Choice(["txt", "jsonl", "json", "csv", "tsv", "parquet", "openai"]),
        help="Input format, if the extension does not show it; openai: OpenAI's batch files.",
    ),
    quoting_option,
    click.option("--limit", type=int, metavar="N", help="Read only the first N records."),
    click.option(
        "--keep",
        metavar="all|none|A,B",
        default="all",
        show_default=True,
        help="Columns of the input that the results repeat.",
    ),
)
@option_group(
    "Model",
    click.option(
        "-m",
        "--model",
        "--model-id",
        metavar="ID|PATH|job:ID",
        help="A model on the Hub, a directory, or the model of a job.  [default: the task's]",
    ),
    revision_option,
    click.option(
        "--dtype", type=click.Choice(DTYPES), help="Data type for inference.  [default: the worker's setting]"
    ),
    param_option("A parameter of the task, such as top_k=3."),
    text_option("--system", "System message before each chat, for text generation."),
    click.option(
        "--chat/--no-chat",
        default=None,
        help="Ask each text as a user's message, or continue it as raw text.  [default: chat with the default model or "
        "--system]",
    ),
)
@option_group(
    "Output",
    output_option,
    part_format_option,
    click.option(
        "--output-column",
        metavar="NAME",
        default="output",
        show_default=True,
        help="Name of the column (or JSON key) that holds the output.",
    ),
    csv_safe_option,
    public_option,
    click.option(
        "--wait/--no-wait", default=None, help="Wait for the job and print the results, or return once it is accepted."
    ),
    click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="Print JSON, also on a terminal: the results, the job, or the report of --dry-run.",
    ),
)
@option_group(
    "Job",
    name_option,
    label_option(),
    priority_option,
    after_option,
    after_any_option,
    click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "gpu"]),
        default="auto",
        show_default=True,
        help="Kind of worker that may run the job.",
    ),
    click.option("--chunk-size", type=int, metavar="N", help="Maximum number of records per chunk."),
    click.option(
        "--max-errors", metavar="N|P%", help="Fail the job once more than this number or share of records has failed."
    ),
    click.option(
        "--idempotency-key",
        metavar="KEY",
        help="Create at most one job with this key, however often this command runs.",
    ),
    click.option(
        "--store",
        metavar="URL",
        help="Where records and results are stored.  [default: HUGQUEUE_STORE_URL, else Redis]",
    ),
    notify_option,
    keep_alive_option,
    click.option("--dry-run", is_flag=True, help="Read and check everything without creating a job."),
)
def submit(
    inputs: tuple[str, ...],
    labels: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    keep_alive: str | None,
    **options: Any,
) -> None:
    """Run records through a model.

    \b
    INPUT is one or more of
      FILE                          .txt (a record per line), .jsonl, .json, .csv,
                                    .tsv or .parquet; text may be gzipped
      -                             standard input
      s3://bucket/*.parquet         any URL that fsspec supports
      hf:ORG/NAME[:CONFIG][:SPLIT]  a dataset on the Hub
      job:ID                        the results of a job, once it has ended
      photos/ or photos/*.jpg       for tasks over images, audio or video

    If a Redis is configured, this prints the job id and returns. With --wait or -o, or without a configured Redis, it
    waits and shows the results: a table on a terminal, JSON lines in a pipe.

    With -o hf:ORG/NAME[:SPLIT], results are uploaded to a dataset on the Hub while the job runs.

    \b
      producer submit --task fill-mask sentences.txt
      producer submit --task embedding articles.jsonl --column body -o vectors.npy
      producer submit --task text-generation talks.csv --template 'Sum up: {body}'
      producer submit --task sentiment-analysis hf:ORG/REVIEWS -o hf:ORG/LABELS
      producer submit --format openai requests.jsonl -o responses.jsonl
      producer submit --task embedding job:ID -o vectors.parquet
      cat reviews.txt | producer submit --task sentiment-analysis - > labels.jsonl

    \b
    Exit status:
      0    all records succeeded (or, without waiting, the job was accepted)
      3    some records failed (--dry-run: are invalid)
      1    the job failed or was cancelled (--dry-run: no worker could run it)
      2    invalid usage or input
      130  Ctrl-C
    """
    from producer.job_filter import parse_labels
    from producer.submit.options import SubmitOptions
    from producer.submit.plan import make_plan

    plan = make_plan(inputs, SubmitOptions(labels=parse_labels(labels), **options))
    if dry_run:
        from producer.submit.dry_run import make_dry_run_report

        report = make_dry_run_report(plan, notify)
        if as_json:
            print_json(report.as_dict())
        else:
            click.echo(report.as_text())
        sys.exit(dry_run_status(report))
    if "-" in inputs and sys.stdin.isatty():
        notify("Reading records from the terminal, one per line; finish with Ctrl-D.")
    plan, records = plan.peek()
    with open_client(with_worker=True, replace_outdated=True, keep_alive=keep_alive) as client:
        from producer.cli.run_submit import run_submit

        sys.exit(run_submit(client, plan, records, notify, as_json=as_json))
