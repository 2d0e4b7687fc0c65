"""`producer report`: writes the report page of a fine-tune job."""

from pathlib import Path

import click

from producer.cli.options import job_argument
from producer.cli.session import open_client
from producer.cli.terminal import notify


@click.command()
@job_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The HTML file to write.",
)
def report(job: str, output: Path) -> None:
    """Write an HTML report on a completed fine-tune job, in one self-contained file.

    It shows the curves of loss and learning rate, the metrics of each evaluation, precision and recall per class, the
    confusion matrix, the texts of the examples with the highest loss, and the data, arguments, versions and device.
    """
    from producer.finetune.report import make_finetune_report, write_page

    with open_client() as client:
        page = make_finetune_report(client.job(job.removeprefix("job:")))
    write_page(output, page)
    notify(f"wrote {output}")
