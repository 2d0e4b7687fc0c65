"""One table of the run on a GPU: hugqueue, in the dtypes that the GPU has, beside what people use instead."""

import argparse
import contextlib
import json
import logging
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.__main__ import JOB, TASKS, inputs
from benchmarks.gpu.models import MODELS
from benchmarks.gpu.strategies import device_process
from benchmarks.measure import Contestant, Figure, measure, reason, table
from benchmarks.parity import notes
from benchmarks.strategies import LIMIT, Strategy, Work, pipeline, sentence_transformers, whole_job
from common.errors import UsageError

OURS = "hugqueue, in the process"
#: Texts for the slow strategies, at least, and the share of all if that is more.
_FEW, _PART = 256, 0.02
_BATCHES = (32, 256)


def main() -> None:
    """Measure, print the table, and write its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--records", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", type=Path, required=True)
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the queue is stopped too
    model = MODELS[chosen.model](chosen.task, tiny=chosen.tiny)
    fewer = {"max_new_tokens": 4} if chosen.tiny and chosen.task == "text-generation" else {}
    work = Work(chosen.task, model, TASKS[chosen.task][1] | fewer, chosen.device)
    texts = inputs(chosen.task, "mixed", 16 if chosen.tiny else chosen.records)
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as queues:
        found = {OURS: Contestant(_noted(OURS, lambda: device_process(work)))}
        found |= _file_to_file(work, Path(directory), queues)
        found |= _others(work, min(1.0, max(_PART, _FEW / len(texts))))
        figures = measure(found, texts, chosen.rounds)
    tokens = _mean_tokens(work, texts)
    title = f"{chosen.task}, {chosen.model}: {len(texts)} records of {tokens:.1f} tokens, {work.dtype}"
    print(table(title, figures, OURS, notes(work.task, figures, OURS)))
    if work.task != "text-generation":
        fastest = {name: figures[name] for name in (OURS, JOB, f"{OURS}, float8") if name in figures}
        rates = [f"{name} {one.rate * tokens / 1e6:.3f}" for name, one in fastest.items() if one.seconds]
        print(f"\nMillions of tokens a second: {'; '.join(rates)}.")
    chosen.json.write_text(json.dumps(_as_json(figures, tokens)))


def _file_to_file(work: Work, directory: Path, queues: contextlib.ExitStack) -> dict[str, Contestant]:
    """Return the whole job through a queue, where its libraries and a server are installed."""
    try:
        from benchmarks.queue import running_queue
        from producer.embedded.server_binary import find_binary
        from producer.embedded.state_dir import StateDir

        find_binary(StateDir(directory))
    except (ImportError, UsageError) as error:
        print(f"No queue here, so nothing is measured from file to file: {reason(error)}", flush=True)
        return {}
    make = lambda: whole_job(work, directory, queues.enter_context(running_queue(work, directory)))  # noqa: E731
    return {JOB: Contestant(_noted(JOB, make))}


def _others(work: Work, part: float) -> dict[str, Contestant]:
    found: dict[str, Any] = {}
    if work.on_gpu:
        found[f"{OURS}, float8"] = (partial(device_process, work, dtype="float8"), 1.0)
    found["pipeline, one by one"] = (partial(pipeline, work, 1), 0.25 * part)
    for size in _BATCHES:
        found[f"pipeline, batches of {size}"] = (partial(pipeline, work, size), part)
        if work.task == "embedding":
            name = f"sentence-transformers, batches of {size}"
            found[name] = (partial(sentence_transformers, work, size), min(1.0, 8 * part))
    return {name: Contestant(_noted(name, make), share) for name, (make, share) in found.items()}


def _noted(name: str, make: Any) -> Any:
    """Print the time of each run as it ends: a table that is not finished has its figures in the log."""

    def made() -> Strategy:
        begun = time.perf_counter()
        try:
            strategy = make()
        except Exception as error:
            print(f"{name}: {reason(error)}", file=sys.stderr, flush=True)
            raise
        print(f"{name}: ready after {time.perf_counter() - begun:.1f} s", file=sys.stderr, flush=True)

        def run(texts: Sequence[str]) -> list[Any]:
            begun = time.perf_counter()
            outputs: list[Any] = strategy(texts)
            seconds = time.perf_counter() - begun
            print(f"{name}: {len(texts)} records in {seconds:.2f} s", file=sys.stderr, flush=True)
            return outputs

        return run

    return made


def _mean_tokens(work: Work, texts: Sequence[str]) -> float:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(work.model)
    some = texts[:4096]
    found = tokenizer(list(some), truncation=True, max_length=LIMIT.get(work.task, 512))
    return sum(map(len, found["input_ids"])) / len(some)


def _as_json(figures: Mapping[str, Figure], tokens: float) -> dict[str, object]:
    return {
        name: {"records_per_second": one.rate, "tokens_per_second": one.rate * tokens, "seconds": one.seconds}
        if one.seconds
        else {"failure": one.failure}
        for name, one in figures.items()
    }


if __name__ == "__main__":
    main()
