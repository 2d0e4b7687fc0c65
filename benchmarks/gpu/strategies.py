"""hugqueue on a GPU, as it runs in the device process, and from file to file."""

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.strategies import Quiet, Strategy, Work
from common.jobs import JobSpec
from common.payloads.arrays import values_of
from common.payloads.codec import decode_outcomes, iter_outcomes
from common.records import Json, Record
from common.tasks import find_task
from workers.device.server.calibration import calibrate
from workers.device.server.encode_chunk import OutputEncoding, encode_chunk
from workers.device.server.model_cache import LoadedModel
from workers.device.server.run_chunk import ChunkInputs, prepare_chunk, run_chunk
from workers.inference.tasks.runners import find_runner
from workers.models.load_options import LoadOptions


def device_process(work: Work, **params: Json) -> Strategy:
    """The work of the device process in this one: tokenize the next chunk and encode the last while one is computed.

    Args:
        work: what to do.
        params: of the job, such as `dtype`.
    """
    loaded = find_runner(work.task).load(
        work.task, work.model, work.device, LoadOptions().with_params(work.task, params)
    )
    calibrate(LoadedModel(loaded, work.task, None, work.device), None, Quiet())
    size = find_task(work.task).chunk_records
    outputs = OutputEncoding.of(loaded, JobSpec("0" * 12, work.task, params=work.params), work.params)

    def run(texts: Sequence[str]) -> list[Any]:
        chunks = [
            {at: Record(at, text) for at, text in enumerate(texts[start : start + size])}
            for start in range(0, len(texts), size)
        ]
        payloads: list[Future[Any]] = []
        with ThreadPoolExecutor(1) as tokenizing, ThreadPoolExecutor(1) as encoding:
            prepare = partial(tokenizing.submit, prepare_chunk, loaded)
            following: Future[ChunkInputs] = prepare(chunks[0], work.params)
            for number, records in enumerate(chunks):
                inputs = following.result()
                if number + 1 < len(chunks):
                    following = prepare(chunks[number + 1], work.params)
                outcomes = run_chunk(loaded, records, work.params, work.device, Quiet(), inputs)
                payloads.append(encoding.submit(encode_chunk, records, outcomes, outputs))
        tables = [decode_outcomes(payload.result()[0]) for payload in payloads]
        return [row.output for one in tables for _, _, row in iter_outcomes(one, arrays=True)]

    return run


def file_to_file(work: Work, directory: Path, environ: dict[str, str]) -> Strategy:
    """A job through Redis, Celery and a running worker; unlike in `benchmarks.strategies`, numbers stay in numpy."""
    source, target = directory / "in.txt", directory / "out.parquet"

    def run(texts: Sequence[str]) -> list[Any]:
        source.write_text("".join(f"{text}\n" for text in texts))
        command = [sys.executable, "-P", "-m", "producer.cli", "submit", "--task", work.task, str(source)]
        command += ["-m", str(work.model), "-o", str(target)]
        for key, value in work.params.items():
            command += ["-p", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
        done = subprocess.run(command, env=environ, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"producer submit ended with {done.returncode}: {done.stderr[-500:]}")
        import pyarrow.parquet as pq

        return values_of(pq.read_table(target).column("output"))

    return run
