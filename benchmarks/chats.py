"""`python -m benchmarks.chats`: a real chat model answers real questions, by hugqueue and by `transformers.pipeline`.

The pipeline gets its chats sorted by length, in batches of the sizes that suit it best.
"""

import argparse
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from benchmarks import models
from benchmarks.machine import described
from benchmarks.measure import Contestant, measure, table
from benchmarks.parity import notes
from benchmarks.queue import running_queue
from benchmarks.strategies import Strategy, Work, runner, whole_job

JOB = "hugqueue, file to file"
#: With the template of the model and an ending, some 60 tokens each.
QUESTIONS = (
    "Explain why the sky is blue to a six-year-old child.",
    "Write a short poem about autumn leaves that fall in a quiet park.",
    "What are three good habits for learning a new language, and how long does it take until I see progress?",
    "Summarize the plot of Romeo and Juliet in two sentences.",
    "I have eggs, flour, milk and two ripe bananas. What can I cook for breakfast in twenty minutes?",
    "Write a polite email that asks my landlord to repair the heating before the weekend.",
    "How do I reverse a list in Python?",
    "Name the planets of the solar system in order, starting with the one nearest to the sun.",
    "My train leaves at 8:40, and the walk to the station takes 25 minutes. When should I leave home?",
    "What is the difference between a virus and a bacterium?",
    "Translate this sentence into French: The library opens at nine and closes at six.",
    "Who wrote Pride and Prejudice?",
    "Is this review positive or negative? The battery died after two days, and nobody answered my letters.",
    "Tell me a joke about a programmer and a light bulb.",
    "What should I pack for a three-day hike in the mountains in October, when it may rain at night?",
    "Extract the names from this text: Yesterday Anna met Mr. Brown and his son Peter near the old bridge in Prague.",
)
ENDINGS = (
    "",
    " Answer briefly.",
    " Use simple words, and give one example.",
    " Think step by step before you answer, and end with one sentence that repeats the most important thing.",
)
_BATCHES = (32, 64)


def main() -> None:
    """Parse the command line, and print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.chats", description=__doc__)
    parser.add_argument("--records", type=int, default=64, help="number of chats (64)")
    parser.add_argument("--new-tokens", type=int, default=48, help="new tokens of each answer (48)")
    parser.add_argument("--dtype", default="float32", help="of all strategies (float32)")
    parser.add_argument("--rounds", type=int, default=2, help="measured rounds (2)")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the queue is stopped too
    params = {"chat": True, "do_sample": False, "max_new_tokens": chosen.new_tokens, "return_full_text": False}
    work = Work("text-generation", models.smollm2(), {**params, "dtype": chosen.dtype})
    print(described(chosen.dtype), flush=True)
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as queues:
        queue = Path(directory)
        contestants = {
            JOB: Contestant(lambda: whole_job(work, queue, queues.enter_context(running_queue(work, queue)))),
            "hugqueue, in the process": Contestant(lambda: in_process(work)),
        }
        for size in _BATCHES:
            contestants[f"pipeline, sorted, batches of {size}"] = Contestant(partial(sorted_pipeline, work, size))
        figures = measure(contestants, list(islice(chats(), chosen.records)), chosen.rounds)
    title = f"chats with SmolLM2-135M, {chosen.dtype}: {chosen.records} records, {chosen.rounds} rounds"
    print(table(title, figures, JOB, notes(work.task, figures, JOB)))


def chats() -> Iterator[str]:
    """Yield questions without end, each one another; after the first 64, with a number."""
    number = 0
    while True:
        for ending in ENDINGS:
            yield from (question + ending + (f" ({number})" if number else "") for question in QUESTIONS)
        number += 1


def in_process(work: Work) -> Strategy:
    """The runner in this process."""
    params = {name: value for name, value in work.params.items() if name != "dtype"}
    return runner(Work(work.task, work.model, params), dtype=work.params["dtype"])


def sorted_pipeline(work: Work, batch: int) -> Strategy:
    """`transformers.pipeline` on a list of chats, the longest first."""
    from transformers import pipeline

    pipe = pipeline(work.task, model=str(work.model), device=work.device, dtype=work.params["dtype"])
    pipe.tokenizer.padding_side = "left"
    options = {name: work.params[name] for name in ("do_sample", "max_new_tokens", "return_full_text")}

    def run(texts: Sequence[str]) -> list[Any]:
        order = sorted(range(len(texts)), key=lambda at: -len(texts[at]))
        messages = [[{"role": "user", "content": texts[at]}] for at in order]
        found = pipe(messages, batch_size=batch, **options)
        return [output for _, output in sorted(zip(order, found, strict=True), key=lambda pair: pair[0])]

    return run


if __name__ == "__main__":
    main()
