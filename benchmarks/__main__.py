"""`python -m benchmarks`: measure hugqueue against other ways to do the same, and print tables of ratios."""

import argparse
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from benchmarks import models
from benchmarks.ablation import ablation
from benchmarks.bound import packed_forward
from benchmarks.machine import described
from benchmarks.measure import Contestant, best_of, measure, table
from benchmarks.parity import compared
from benchmarks.queue import naive_queue, running_queue
from benchmarks.ways import Way, Work, pipeline, runner, sentence_transformers, whole_job
from benchmarks.workloads import MIXES, masked, texts

JOB = "hugqueue, file to file"
#: Task to the function that makes its model, its parameters, and how many texts of a mix are measured.
TASKS: dict[str, tuple[Callable[[], Path], dict[str, object], int]] = {
    "embedding": (models.minilm, {}, 1024),
    "fill-mask": (models.bert_mlm, {}, 192),
    "text-classification": (models.bert_classifier, {}, 192),
    "text-generation": (models.small_causal, {"do_sample": False, "max_new_tokens": 32}, 64),
}
_BATCHES = (8, 32, 64)


def main() -> None:
    """Parse the command line, and print a table for each task and mix as it is measured."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a quarter of the texts, two rounds, mixed lengths alone")
    parser.add_argument("--task", action="append", choices=TASKS, help="only this task; repeatable")
    parser.add_argument("--mix", action="append", choices=[*MIXES, "repeated"], help="only this mix; repeatable")
    parser.add_argument("--rounds", type=int, help="rounds that count (5; quick: 2)")
    parser.add_argument("--no-ablation", action="store_true", help="leave the tables of techniques out")
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the queues end too
    rounds = chosen.rounds or (2 if chosen.quick else 5)
    mixes = chosen.mix or (["mixed"] if chosen.quick else [*MIXES, "repeated"])
    print(described(), flush=True)
    for task in chosen.task or TASKS:
        make, params, count = TASKS[task]
        work = Work(task, make(), params)
        count = count // 4 if chosen.quick else count
        for mix in mixes:
            print(compare(work, mix, inputs(task, mix, count), rounds), flush=True)
        if task in ("embedding", "fill-mask") and not chosen.no_ablation:
            print(ablation(work, inputs(task, "mixed", count // 2), rounds), flush=True)


def inputs(task: str, mix: str, count: int) -> list[str]:
    """Return the texts of a mix as `task` takes them; prompts for generation are short."""
    found = texts(mix, count)
    if task == "text-generation":
        return [" ".join(text.split()[:64]) for text in found]
    return masked(found, "[MASK]") if task == "fill-mask" else found


def compare(work: Work, mix: str, given: Sequence[str], rounds: int) -> str:
    """Return the table of one task and mix: all ways in turn over the same texts."""
    few = given[::8]
    with tempfile.TemporaryDirectory() as base:
        queue, naive = Path(base) / "queue", Path(base) / "naive"
        with running_queue(work, queue) as environ, naive_queue(work, naive) as one_by_one:
            contestants = {
                JOB: Contestant(whole_job(work, queue, environ)),
                "hugqueue, in the process": Contestant(runner(work)),
                **_peers(work, few),
                "a Celery task for each record": Contestant(one_by_one, 0.125),
                **_bounds(work),
            }
            figures = measure(contestants, given, rounds)
    ours = figures[JOB].outputs
    notes = {
        name: compared(work.task, figure.outputs, contestants[name].part(ours))
        for name, figure in figures.items()
        if name != JOB and figure.outputs
    }
    return table(f"{work.task}, {mix}: {len(given)} records", figures, JOB, notes)


def _peers(work: Work, few: Sequence[str]) -> dict[str, Contestant]:
    size, best = best_of({f"{size}": pipeline(work, size) for size in _BATCHES}, few)
    found: dict[str, Contestant] = {
        "pipeline, one by one": Contestant(pipeline(work, 1), 0.125),
        f"pipeline, at its best batch size ({size})": Contestant(best, 0.25),
    }
    if work.task == "embedding":
        candidates: dict[str, Way] = {f"{size}": sentence_transformers(work, size) for size in (8, 16, 64)}
        size, best = best_of(candidates, few)
        found["sentence-transformers, batch 32"] = Contestant(sentence_transformers(work, 32))
        found[f"sentence-transformers, at its best ({size})"] = Contestant(best)
    return found


def _bounds(work: Work) -> dict[str, Contestant]:
    if work.task == "text-generation":
        return {}
    return {
        "raw forward, torch's layers": Contestant(packed_forward(work, faster_layers=False)),
        "raw forward, our layers": Contestant(packed_forward(work, faster_layers=True)),
    }


if __name__ == "__main__":
    main()
