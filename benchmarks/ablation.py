"""What each technique brings: the same texts, one technique more in each row."""

from collections.abc import Sequence
from unittest.mock import patch

from benchmarks.measure import Contestant, measure, table
from benchmarks.parity import compared
from benchmarks.ways import Work, pipeline, runner

_ALL = "+ linear layers by oneDNN"


def ablation(work: Work, texts: Sequence[str], rounds: int) -> str:
    """Return the table of `work`, each row with all that stands above it; the last two are other dtypes."""
    with patch("workers.runners.precision.take_faster_layers"):  # torch's own layers
        contestants = {
            "pipeline, one by one": Contestant(pipeline(work, 1), 0.25),
            "pipeline, batches of 32 as they come": Contestant(pipeline(work, 32), 0.5),
        }
        if work.task != "embedding":  # which has no plain way
            contestants["+ sorted by length, cut by tokens"] = Contestant(runner(work, plain=True))
        contestants["+ tokenised at once, no more than is asked for"] = Contestant(runner(work))
    contestants[_ALL] = Contestant(runner(work))
    contestants["with dtype=bfloat16"] = Contestant(runner(work, dtype="bfloat16"))
    contestants["with dtype=int8"] = Contestant(runner(work, dtype="int8"))
    figures = measure(contestants, texts, rounds)
    ours = figures[_ALL].outputs
    notes = {name: compared(work.task, figures[name].outputs, contestants[name].part(ours)) for name in figures}
    return table(f"Ablation: {work.task}, mixed lengths", figures, _ALL, notes)
