"""Object storage goes away in the middle of a job: it waits and goes on, nothing is lost or doubled."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.fault_jobs import LONG, Batch
from tests.support.processes import Shell, Workers, wait_until
from tests.support.s3_server import BUCKET, S3Server
from tests.support.tcp_proxy import Proxy

StartWorkers = Callable[..., Workers]
NewBatch = Callable[..., Batch]

pytestmark = pytest.mark.faults


@pytest.fixture
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[Proxy]:
    started = Proxy(s3.port)
    yield started
    started.close()


@pytest.fixture
def far(s3: S3Server, proxy: Proxy, environ: dict[str, str], shell: Shell) -> dict[str, str]:
    """The environment of those who reach the server by the proxy."""
    more = s3.environ | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}", "HUGQUEUE_SHARED": f"s3://{BUCKET}/"}
    environ |= more
    shell.environ |= more
    return more


def refuse_for_a_while(proxy: Proxy, workers: list[Workers]) -> None:
    """Refuse connections until each worker has met that, twice."""
    before = [worker.text().count("waiting for files") for worker in workers]
    proxy.refuse()
    wait_until(
        lambda: all(w.text().count("waiting for files") > n + 1 for w, n in zip(workers, before, strict=True)), LONG
    )
    proxy.serve()


def test_outcomes_wait_for_an_unavailable_store(
    far: dict[str, str], proxy: Proxy, start_workers: StartWorkers, new_batch: NewBatch
) -> None:
    far_store = {"HUGQUEUE_STORE_URL": f"s3://{BUCKET}/store"}
    batch = new_batch(200, seconds=0.3)
    batch.shell.environ |= far_store
    workers = [start_workers(**far_store) for _ in range(2)]
    batch.submit().wait_for_records(30)
    refuse_for_a_while(proxy, workers)
    batch.finish()
    assert batch.runs_twice() == 0


def test_an_output_is_complete_though_its_location_was_unavailable(
    far: dict[str, str], s3: S3Server, proxy: Proxy, start_workers: StartWorkers, new_batch: NewBatch
) -> None:
    batch = new_batch(200, seconds=0.3)
    workers = [start_workers() for _ in range(2)]
    batch.id = batch.shell.submit(*batch.arguments(), "-o", f"s3://{BUCKET}/out/", "--no-wait")
    batch.wait_for_records(30)
    refuse_for_a_while(proxy, workers)
    batch.finish()
    assert batch.runs_twice() == 0
    files = s3.files()
    names = [
        f"{BUCKET}/out/{name}" for name in ("_SUCCESS", "_manifest.json", *(f"part-{n:05d}.parquet" for n in range(20)))
    ]
    assert files.find(f"{BUCKET}/out") == names
    texts = [text for name in names[2:] for text in pq.read_table(name, filesystem=files)["output"].to_pylist()]
    assert texts == [f"LINE {n}" for n in range(200)]


def test_an_output_unavailable_at_the_last_chunk_gets_success_later(
    far: dict[str, str], s3: S3Server, proxy: Proxy, start_workers: StartWorkers, new_batch: NewBatch, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    batch = new_batch(10, seconds=0, until=go)
    workers = start_workers()
    batch.id = batch.shell.submit(*batch.arguments(), "-o", f"s3://{BUCKET}/out/", "--no-wait")
    wait_until(lambda: batch.leased() == 1, LONG, "the chunk is running")
    proxy.refuse()
    go.touch()
    wait_until(lambda: "waiting for files" in workers.text(), LONG, "the worker met that")
    proxy.serve()
    batch.finish()
    assert s3.files().exists(f"{BUCKET}/out/_SUCCESS")
