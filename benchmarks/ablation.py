"""Ablation: the effect of each technique, with one more technique per row and the same texts."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

from benchmarks.measure import Contestant, measure, table
from benchmarks.parity import notes
from benchmarks.strategies import Strategy, Work, pipeline, runner
from workers.inference.tasks.encoder_tasks import EncoderTask, FillMask
from workers.inference.text.tokenization import TokenizedText

_ALL = "+ equal records once"


def ablation(work: Work, texts: Sequence[str], rounds: int) -> str:
    """Return the table of `work`: each row adds to those above it; the last rows use other dtypes."""
    contestants = {
        "pipeline, one by one": Contestant(lambda: pipeline(work, 1), 0.25),
        "pipeline, batches of 32 as they come": Contestant(lambda: pipeline(work, 32), 0.5),
    }
    if work.task != "embedding":  # embedding has only one implementation
        contestants["+ sorted by length, cut by tokens"] = Contestant(
            _without(lambda: runner(work, forward_batch=False, keeps=False), layers=True, once=True)
        )
    at_once = "+ tokenized at once" if work.task == "fill-mask" else "+ sorted, cut by tokens, tokenized at once"
    contestants[at_once] = Contestant(_without(lambda: runner(work, keeps=False), layers=True, once=True, masks=True))
    if work.task == "fill-mask":
        contestants["+ vocabulary head on masks alone"] = Contestant(
            _without(lambda: runner(work, keeps=False), layers=True, once=True)
        )
    if not work.on_gpu:
        contestants["+ linear layers by oneDNN"] = Contestant(_without(lambda: runner(work, keeps=False), once=True))
        contestants["+ memory kept between batches"] = Contestant(_without(lambda: runner(work), once=True))
    contestants[_ALL] = Contestant(lambda: runner(work))
    for dtype in ("float32",) if work.on_gpu else ("bfloat16", "int8"):
        contestants[f"with dtype={dtype}"] = Contestant(partial(runner, work, dtype=dtype))
    figures = measure(contestants, texts, rounds)
    title = f"Ablation: {work.task}, {len(texts)} records of mixed lengths, a fifth of them repeated"
    return table(title, figures, _ALL, notes(work.task, figures, _ALL))


def _without(
    make: Callable[[], Strategy], *, layers: bool = False, once: bool = False, masks: bool = False
) -> Callable[[], Strategy]:
    """Return a function that makes a strategy without some techniques.

    Args:
        make: makes the full strategy.
        layers: omit the faster linear layers.
        once: run equal records each time they occur.
        masks: compute the scores of all tokens, and select those of the masks.
    """

    def made() -> Strategy:
        with _patched(layers, "workers.inference.loading.dtypes.use_onednn_linear", lambda _: None):
            strategy = make()

        def run(texts: Sequence[str]) -> list[Any]:
            with (
                _patched(
                    once,
                    "workers.device.server.run_chunk._group_equal",
                    lambda values: [[position] for position in values],
                ),
                _patched(masks, "workers.inference.tasks.encoder_tasks.FillMask.forward_batch", _all_scores),
            ):
                return strategy(texts)

        return run

    return made


def _patched(wanted: bool, name: str, replacement: Any) -> AbstractContextManager[Any]:
    return patch(name, replacement) if wanted else nullcontext()


def _all_scores(self: FillMask, inputs: dict[str, Any], rows: Sequence[TokenizedText]) -> list[Any]:
    """Return the result of `FillMask.forward_batch`, selected from the scores of all tokens."""
    scores = EncoderTask.forward_batch(self, inputs, rows)
    mask = self.tokenizer.mask_token_id
    return [part[row.features["input_ids"] == mask] for part, row in zip(scores, rows, strict=True)]
