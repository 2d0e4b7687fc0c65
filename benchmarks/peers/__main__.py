"""`python -m benchmarks.peers`: compares with what users could install instead, at each precision, and draws a chart.

Embedding: sentence-transformers with torch, OpenVINO and ONNX Runtime, and fastembed. Chats: `transformers.pipeline`,
llama.cpp and vLLM. Each runs in the environment of its library, with its model loaded, in several batch sizes; hugqueue
runs whole jobs from file to file. `make bench-peers` builds the environments.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import islice
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from benchmarks import models
from benchmarks.bar_chart import bar_chart
from benchmarks.chats import chats, in_process, sorted_pipeline
from benchmarks.flops import encoder_operations, peak
from benchmarks.machine import described
from benchmarks.measure import Contestant, Figure, measure, table
from benchmarks.parity import compared, notes
from benchmarks.peers.process import Peer
from benchmarks.queue import running_queue
from benchmarks.strategies import LIMIT, Strategy, Work, sentence_transformers, whole_job
from benchmarks.workloads import texts

JOB = "hugqueue, file to file"
PRECISIONS = ("float32", "bfloat16", "int8")
_CACHE = models.CACHE / "peers"
_BATCHES = (8, 16, 32)
#: Runtimes of encoders at each precision; fastembed has no other, and ONNX Runtime no bfloat16 on CPUs.
_RUNTIMES = {"float32": ("openvino", "onnx", "fastembed"), "bfloat16": ("openvino",), "int8": ("openvino", "onnx")}
_NAMES = {
    "openvino": "sentence-transformers + OpenVINO",
    "onnx": "sentence-transformers + ONNX Runtime",
    "fastembed": "fastembed",
}
#: The environment of each runtime in the directory of `--environments`; fastembed shares ONNX Runtime's.
_ENVIRONMENTS = {"openvino": "openvino", "onnx": "onnx", "fastembed": "onnx", "llama": "llama"}
#: Share of the texts that each peer runs in each batch size.
_SHARE = 0.34
_AT_ONCE = (16, 64)

Figures = Mapping[str, Figure]


def main() -> None:
    """Parse the command line, print a table for each precision, and write the chart."""
    parser = argparse.ArgumentParser(prog="benchmarks.peers", description=__doc__)
    parser.add_argument("--environments", type=Path, default=Path(".venv-peers"), help="what make bench-peers built")
    parser.add_argument("--vllm", type=Path, default=Path(".venv-vllm/bin/python"), help="an interpreter with vLLM")
    parser.add_argument("--precision", action="append", choices=PRECISIONS, help="only this one; repeatable")
    parser.add_argument("--records", type=int, default=3000, help="texts to embed (3000)")
    parser.add_argument("--chats", type=int, default=64, help="chats to answer, 0 for none (64)")
    parser.add_argument("--rounds", type=int, default=2, help="measured rounds (2)")
    parser.add_argument("--chart", type=Path, help="write a bar chart (SVG) of the best batch sizes here")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the queues and peers are stopped too
    print(described(", ".join(chosen.precision or PRECISIONS)), flush=True)
    groups: dict[str, dict[str, float]] = {}
    for precision in chosen.precision or PRECISIONS:
        for title, tell in _tables(chosen, precision).items():
            if bars := _best(tell()):
                groups[title] = bars
            if chosen.chart:  # after each table: the next takes minutes
                chosen.chart.write_text(bar_chart(groups, "per second", JOB))


def _tables(chosen: argparse.Namespace, precision: str) -> dict[str, Callable[[], Figures]]:
    found: dict[str, Callable[[], Figures]] = {}
    if chosen.records:
        found[f"Embedding, MiniLM-L6, {precision}: texts"] = lambda: _embedding(chosen, precision)
    if chosen.chats and precision != "int8":
        found[f"Chats, SmolLM2-135M, {precision}: answers"] = lambda: _chats(chosen, precision)
    return found


def _embedding(chosen: argparse.Namespace, precision: str) -> Figures:
    """Measure all encoders and print their table, with the share of the peak and the least cosine to float32."""
    inputs = texts("mixed", chosen.records)
    (_CACHE / "calibration").mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"text": text}) for text in texts("mixed", 300, seed=8))
    (_CACHE / "calibration" / "train.jsonl").write_text("\n".join(lines))
    work = Work("embedding", models.minilm(), {"dtype": precision})
    expected = sentence_transformers(Work("embedding", models.minilm()), 16)(inputs)
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as running:
        contestants = {
            JOB: _job(work, Path(directory), running),
            "hugqueue, in the process": Contestant(lambda: in_process(work)),
        }
        if precision != "int8":
            for size in _BATCHES:
                contestants[f"sentence-transformers, batches of {size}"] = Contestant(
                    partial(sentence_transformers, work, size), _SHARE
                )
        for runtime in _RUNTIMES[precision]:
            python = _python(chosen.environments, runtime)
            start = _once(running, python, "encoders", runtime, precision, work.model, _CACHE)
            for size in _BATCHES:
                contestants[f"{_NAMES[runtime]}, batches of {size}"] = Contestant(partial(_run, start, size), _SHARE)
        figures = measure(contestants, inputs, chosen.rounds)
    title = f"embedding, MiniLM, {precision}: {len(inputs)} records of mixed lengths, {chosen.rounds} rounds"
    noted = _shares(figures, work, inputs, precision, expected)
    print(table(title, figures, JOB, noted, "of the peak; outputs against float32"), flush=True)
    return figures


def _shares(
    figures: Figures, work: Work, inputs: Sequence[str], precision: str, expected: Sequence[object]
) -> dict[str, str]:
    operations = encoder_operations(work.model, inputs, LIMIT["embedding"]) / len(inputs)
    return {
        name: f"{100 * figure.rate * operations / peak(precision):.0f} %; "
        + compared("embedding", figure.outputs, [expected[at] for at in figure.positions])
        for name, figure in figures.items()
        if figure.seconds
    }


def _chats(chosen: argparse.Namespace, precision: str) -> Figures:
    """Measure all generators over the same chats and print their table."""
    params = {"chat": True, "do_sample": False, "max_new_tokens": 48, "return_full_text": False, "dtype": precision}
    work = Work("text-generation", models.smollm2(), params)
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as running:
        contestants = {
            JOB: _job(work, Path(directory), running),
            "hugqueue, in the process": Contestant(lambda: in_process(work)),
            **{f"pipeline, sorted, batches of {n}": Contestant(partial(sorted_pipeline, work, n)) for n in (32, 64)},
        }
        python = _python(chosen.environments, "llama")
        start = _once(running, python, "llama", models.smollm2_package(), precision, params["max_new_tokens"], _CACHE)
        for number in _AT_ONCE:
            contestants[f"llama.cpp, {number} sequences at once"] = Contestant(partial(_run, start, number))
        start = _once(running, chosen.vllm, "vllm_chats", work.model, precision, params["max_new_tokens"])
        contestants["vLLM, 64 sequences at once"] = Contestant(partial(_run, start, 64))
        figures = measure(contestants, list(islice(chats(), chosen.chats)), chosen.rounds)
    title = f"chats with SmolLM2-135M, {precision}: {chosen.chats} records, {chosen.rounds} rounds"
    print(table(title, figures, JOB, notes("text-generation", figures, JOB)), flush=True)
    return figures


def _job(work: Work, directory: Path, running: contextlib.ExitStack) -> Contestant:
    return Contestant(lambda: whole_job(work, directory, running.enter_context(running_queue(work, directory))))


def _python(environments: Path, runtime: str) -> Path:
    return environments / _ENVIRONMENTS[runtime] / "bin" / "python"


def _once(running: contextlib.ExitStack, python: Path, *arguments: object) -> Callable[[], Peer]:
    """Return a function that starts the peer on its first call."""

    @cache
    def start() -> Peer:
        peer = Peer(python.absolute(), *arguments)
        running.callback(peer.close)
        return peer

    return start


def _run(start: Callable[[], Peer], batch: int) -> Strategy:
    return start().strategy(batch)


def _best(figures: Figures) -> dict[str, float]:
    """Return the rate of each strategy in its best batch size, by its name without that."""
    best: dict[str, float] = {}
    for name, figure in figures.items():
        if name != "hugqueue, in the process" and figure.seconds and not figure.failure:
            short = name if name == JOB else name.partition(", ")[0]
            best[short] = max(figure.rate, best.get(short, 0.0))
    return best


if __name__ == "__main__":
    main()
