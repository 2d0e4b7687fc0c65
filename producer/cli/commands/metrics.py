"""`producer metrics`: serve the metrics of the queue for Prometheus."""

import signal
import threading

import click

from producer.cli.session import open_client
from producer.cli.terminal import notify


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=9808, show_default=True, help="Port to listen on.")
@click.option("--address", default="127.0.0.1", show_default=True, help="Address to listen on.")
def metrics(port: int, address: str) -> None:
    """Serve metrics of the queue for Prometheus at http://ADDRESS:PORT/metrics, until Ctrl-C or SIGTERM.

    Anyone who reaches the address can read them: tasks, models, counts and error codes, but no records.

    \b
      producer metrics
      producer metrics --address 0.0.0.0 --port 9808
    """
    from common.metrics_server import serving_metrics
    from producer.metrics.queue_metrics import QueueMetrics

    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with open_client() as client, serving_metrics(QueueMetrics(client.connection.store).read, address, port):
        notify(f"metrics at http://{address}:{port}/metrics; Ctrl-C stops")
        stopped.wait()
