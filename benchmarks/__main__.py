"""`python -m benchmarks`: compares hugqueue with other strategies and prints tables of ratios."""

import argparse
import contextlib
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from benchmarks import models
from benchmarks.ablation import ablation
from benchmarks.family import FAMILY, compare_family
from benchmarks.machine import described
from benchmarks.measure import Contestant, measure, reason, table
from benchmarks.overhead import overhead
from benchmarks.parity import notes
from benchmarks.queue import running_queue, task_per_record_queue
from benchmarks.roofline import packed_forward
from benchmarks.strategies import Work, pipeline, runner, sentence_transformers, whole_job
from benchmarks.workloads import MIXES, masked, texts

logger = logging.getLogger(__name__)

JOB = "hugqueue, file to file"
#: For each task: the function that makes its model, its parameters, and its number of texts of mixed lengths.
TASKS: dict[str, tuple[Callable[[], Path], dict[str, object], int]] = {
    "embedding": (models.minilm, {}, 6144),
    "fill-mask": (models.bert_mlm, {}, 512),
    "text-classification": (models.bert_classifier, {}, 512),
    "text-generation": (models.small_causal, {"do_sample": False, "max_new_tokens": 32}, 256),
}
#: Share of that number for each mix. A job of a few seconds would measure its start more than its speed.
_SCALE = {"mixed": 1.0, "short": 1.0, "paragraph": 0.25, "repeated": 0.5}
#: Number of texts for the slow strategies, or the share of all texts if that is more.
_FEW, _PART = 128, 0.0625
#: Factor for the number of texts on a GPU.
_GPU = 16
_BATCHES = (8, 32, 64)
#: Factor for the length of the job that measures the queue overhead, so that its start of half a second matters little.
_LONG = 4


def main() -> None:
    """Parse the command line, and print a table for each task and mix as it is measured."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a quarter of the texts, two rounds, mixed lengths alone")
    parser.add_argument("--task", action="append", choices=[*TASKS, *FAMILY], help="only this task; repeatable")
    parser.add_argument("--mix", action="append", choices=[*MIXES, "repeated"], help="only this mix; repeatable")
    parser.add_argument("--records", type=int, help="number of texts of mixed lengths; default: depends on the task")
    parser.add_argument("--rounds", type=int, help="measured rounds (3; quick: 2)")
    parser.add_argument("--device", default="cpu", help="where all strategies run: cpu, or cuda:0 for the GPU table")
    parser.add_argument("--no-ablation", action="store_true", help="omit the ablation tables")
    chosen = parser.parse_args()
    logging.disable(logging.ERROR)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the queues are stopped too
    rounds = chosen.rounds or (2 if chosen.quick else 3)
    mixes = chosen.mix or (["mixed"] if chosen.quick else list(_SCALE))
    begun = time.monotonic()
    print(described(Work("", Path(), device=chosen.device).dtype), flush=True)
    for task in chosen.task or [*TASKS, *FAMILY]:
        if task in FAMILY:
            print(compare_family(task, chosen.records, rounds), flush=True)
            continue
        make, params, count = TASKS[task]
        work = Work(task, make(), params, chosen.device)
        count = chosen.records or count * (_GPU if work.on_gpu else 1) // (4 if chosen.quick else 1)
        for part in _parts(work, mixes, count, rounds, ablates=not chosen.no_ablation):
            try:
                print(part(), flush=True)
            except Exception as error:  # the boundary of a table: the others are still measured
                logger.debug("a table of %s failed", task, exc_info=True)
                print(f"\n{task}: no table: {reason(error)}", flush=True)
    print(f"\nMeasured in {(time.monotonic() - begun) / 60:.0f} minutes.")


def _parts(work: Work, mixes: Sequence[str], count: int, rounds: int, *, ablates: bool) -> Iterator[Callable[[], str]]:
    """Yield a function for each table of a task."""
    task = work.task
    for mix in mixes:
        yield partial(compare, work, mix, inputs(task, mix, round(count * _SCALE[mix])), rounds)
    if task == "embedding":
        yield partial(overhead, work, inputs(task, "mixed", _LONG * count))
    if ablates and task in ("embedding", "fill-mask"):
        few = count // (4 if task == "embedding" else 2)
        yield partial(ablation, work, inputs(task, "repeated", few), rounds)


def inputs(task: str, mix: str, count: int) -> list[str]:
    """Return the texts of a mix as `task` takes them; prompts for generation are short."""
    found = texts(mix, count)
    if task == "text-generation":
        return [" ".join(text.split()[:64]) for text in found]
    return masked(found, "[MASK]") if task == "fill-mask" else found


def compare(work: Work, mix: str, inputs: Sequence[str], rounds: int) -> str:
    """Return the table of one task and mix: all strategies run in turn over the same texts."""
    with tempfile.TemporaryDirectory() as base, contextlib.ExitStack() as queues:
        queue, per_record = Path(base) / "queue", Path(base) / "naive"
        part = min(1.0, max(_PART, _FEW / len(inputs)))
        contestants = {
            JOB: Contestant(lambda: whole_job(work, queue, queues.enter_context(running_queue(work, queue)))),
            "hugqueue, in the process": Contestant(lambda: runner(work)),
            **_baselines(work, part),
            "a Celery task for each record": Contestant(
                lambda: queues.enter_context(task_per_record_queue(work, per_record)), 0.5 * part
            ),
            **_bounds(work, part),
        }
        figures = measure(contestants, inputs, rounds)
    title = f"{work.task}, {mix}: {len(inputs)} records, {rounds} rounds"
    return table(title, figures, JOB, notes(work.task, figures, JOB))


def _baselines(work: Work, part: float) -> dict[str, Contestant]:
    found = {"pipeline, one by one": Contestant(partial(pipeline, work, 1), 0.5 * part)}
    for size in _BATCHES:
        found[f"pipeline, batches of {size}"] = Contestant(partial(pipeline, work, size), part)
    if work.task == "embedding":
        for size in (8, 16, 32, 64):
            name = f"sentence-transformers, batches of {size}"
            found[name] = Contestant(partial(sentence_transformers, work, size), 0.25)
    return found


def _bounds(work: Work, part: float) -> dict[str, Contestant]:
    if work.task == "text-generation":
        return {}
    return {
        "raw forward, torch's layers": Contestant(partial(packed_forward, work, faster_layers=False), 2 * part),
        "raw forward, our layers": Contestant(partial(packed_forward, work, faster_layers=True), 2 * part),
    }


if __name__ == "__main__":
    main()
