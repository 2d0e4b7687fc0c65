"""`python -m benchmarks.engines`: a real chat model answers real questions by vLLM and by transformers.

Both run in this process, as the device process of a worker runs them, over the same chats in chunks of a job's size:
the next two are prepared while one runs. Standard error tells of each round, the table comes at the end.
`make bench-vllm` runs it where vLLM is installed, with options too: `make bench-vllm ARGS="--records 16"`.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from benchmarks import models
from benchmarks.chats import chats
from benchmarks.machine import described
from benchmarks.measure import Contestant, measure, table
from benchmarks.parity import notes
from benchmarks.strategies import Strategy
from common.jobs import TRANSFORMERS, VLLM
from common.tasks import TASKS

TASK = "text-generation"
#: Chunks that the device process of a worker prepares while it runs one.
_AHEAD = 2


def main() -> None:
    """Parse the command line, and print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.engines", description=__doc__)
    parser.add_argument("--records", type=int, default=256, help="number of chats (256)")
    parser.add_argument("--new-tokens", type=int, default=48, help="new tokens of each answer (48)")
    parser.add_argument("--dtype", default="float32", help="of both (float32)")
    parser.add_argument("--rounds", type=int, default=2, help="measured rounds (2)")
    chosen = parser.parse_args()
    params = {"chat": True, "do_sample": False, "max_new_tokens": chosen.new_tokens, "return_full_text": False}
    model = models.smollm2()
    print(described(chosen.dtype), flush=True)
    figures = measure(
        {
            "vLLM": Contestant(lambda: strategy(VLLM, model, chosen.dtype, params)),
            "transformers, continuous batches": Contestant(lambda: strategy(TRANSFORMERS, model, chosen.dtype, params)),
        },
        list(islice(chats(), chosen.records)),
        chosen.rounds,
    )
    title = f"chats with SmolLM2-135M, {chosen.dtype}: {chosen.records} records, {chosen.rounds} rounds"
    print(table(title, figures, "vLLM", notes(TASK, figures, "vLLM")))


def strategy(engine: str, model: Path, dtype: str, params: dict[str, Any]) -> Strategy:
    """Return what answers chats by an engine."""
    from workers.inference.core.runner import NullMonitor
    from workers.inference.tasks.runners import find_runner
    from workers.models.load_options import LoadOptions

    device, size = models_device(), TASKS[TASK].chunk_records
    runner: Any = find_runner(TASK, engine).load(TASK, model, device, LoadOptions(default_dtype=dtype))

    def run(texts: Sequence[str]) -> list[Any]:
        begun = time.perf_counter()
        chunks = [texts[start : start + size] for start in range(0, len(texts), size)]
        prepared: dict[int, Any] = {}
        found: list[Any] = []
        with ThreadPoolExecutor(1) as ahead:
            for number in range(len(chunks)):
                for near in range(number, min(number + _AHEAD + 1, len(chunks))):
                    if near not in prepared:
                        prepared[near] = ahead.submit(runner.prepare, chunks[near], params)
                found += runner.run_prepared(prepared.pop(number).result(), NullMonitor())
        print(f"{engine}: {len(texts)} chats in {time.perf_counter() - begun:.1f} s", file=sys.stderr, flush=True)
        return [outcome.output[0]["generated_text"] for outcome in found]

    return run


def models_device() -> str:
    """The first GPU, or the CPU."""
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    main()
