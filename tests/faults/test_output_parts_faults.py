"""Workers that write `-o DIR/` die between the commit of a chunk and the placing of its part."""

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from common.redis.scripts import script_text
from tests.support.fault_jobs import LONG, Batch
from tests.support.processes import RedisServer, Workers, wait_until
from tests.support.tcp_proxy import Proxy

pytestmark = pytest.mark.faults


def test_another_worker_renames_a_part_whose_worker_died_after_the_commit(
    server: RedisServer,
    environ: dict[str, str],
    start_workers: Callable[..., Workers],
    new_batch: Callable[..., Batch],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    shared = {"HUGQUEUE_SHARED": str(tmp_path)}
    batch = new_batch(20, seconds=0)
    batch.shell.environ |= shared
    proxy = Proxy(server.port)
    victim = start_workers(REDIS_URL=proxy.url, **shared)
    proxy.hold_answers_after(server.client.script_load(script_text("commit")).encode())
    batch.id = batch.shell.submit(*batch.arguments(), "-o", f"{out}/", "--no-wait")
    wait_until(lambda: proxy.holds_answers and batch.committed(), LONG, "a commit has counted")
    victim.kill()
    proxy.close()
    assert [path.name for path in out.iterdir()] == ["_attempts"]
    start_workers(**shared)
    batch.finish()
    names = sorted(path.name for path in out.iterdir())
    assert names == ["_SUCCESS", "_manifest.json", "part-00000.parquet", "part-00001.parquet"]
    texts = [text for name in names[2:] for text in pq.read_table(out / name)["output"].to_pylist()]
    assert texts == [f"LINE {n}" for n in range(20)]
    assert batch.commits() == [1, 1]
