"""`producer report`."""

from pathlib import Path

import click

from producer.cli.options import job_argument
from producer.cli.session import open_client
from producer.cli.terminal import notify


@click.command()
@job_argument
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The .html file.")
def report(job: str, output: Path) -> None:
    """Write one self-contained page about a completed fine-tune job, to be looked at in a browser.

    It has the curves of loss and learning rate, the metrics of each evaluation, precision and recall of each class,
    which were taken for which, the examples that the model got most wrong with their texts, and the data, arguments,
    versions and device.
    """
    from producer.finetune.report import make_finetune_report, write_page

    with open_client() as client:
        page = make_finetune_report(client.job(job.removeprefix("job:")))
    write_page(output, page)
    notify(f"wrote {output}")
