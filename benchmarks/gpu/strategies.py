"""hugqueue on a GPU, as it runs in the device process."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from benchmarks.strategies import Quiet, Strategy, Work
from common.jobs import JobSpec
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
