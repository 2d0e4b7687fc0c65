"""From the logits of a question-answering model to spans of tokens, and from those to answers.

The scores are those of the `question-answering` pipeline of transformers 4.57: softmax over the tokens that may be in
an answer, window by window; start times end; spans that are the same words added up. Knows no model and no tokenizer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `start` to `end`, both included, with the probability that they are the answer."""

    start: int
    end: int
    score: float


def best_spans(
    start: Floats, end: Floats, context: Flags, null: int | None, count: int, longest: int
) -> tuple[list[Span], float]:
    """Return the likeliest spans of one window, at most `count`, and the probability that it holds no answer.

    Args:
        start: logits of shape (tokens,), for a span to begin there.
        end: the same for its last token.
        context: which tokens an answer can be made of.
        null: the token (`[CLS]`) that stands for "no answer"; it takes part in the softmax alone.
        count: how many spans are wanted.
        longest: tokens in a span at most.
    """
    taking_part = context.copy()
    if null is not None:
        taking_part[null] = True
    starts, ends = _softmax(start, taking_part), _softmax(end, taking_part)
    no_answer = 0.0 if null is None else float(starts[null] * ends[null])
    places = np.flatnonzero(context)
    if null is not None:
        places = places[places != null]
    # One row for each place a span may begin at, one column for each place it may end at, counted from there.
    reach = places[:, None] + np.arange(min(longest, len(start)))
    inside = np.isin(reach, places)
    scores = np.where(inside, starts[places][:, None] * ends[np.minimum(reach, len(end) - 1)], -1.0)
    count = min(count, int(inside.sum()))
    order = np.argsort(-scores, axis=None, kind="stable")[:count]
    spans = [
        Span(int(places[row]), int(reach[row, column]), float(scores[row, column]))
        for row, column in zip(*np.unravel_index(order, scores.shape), strict=True)
    ]
    return spans, no_answer


def merged(found: Iterable[tuple[str, int, int, float]]) -> list[dict[str, Any]]:
    """Return one answer for each text, whatever its case: the first place it was found at, and all scores added.

    Args:
        found: text, first character, character after the last, score.
    """
    answers: dict[str, dict[str, Any]] = {}
    for text, start, end, score in found:
        known = answers.setdefault(text.lower(), {"score": 0.0, "start": start, "end": end, "answer": text})
        known["score"] += score
    return list(answers.values())


def best_answers(answers: Sequence[Mapping[str, Any]], top_k: int) -> list[Mapping[str, Any]]:
    """Return the `top_k` answers of the highest score, in that order."""
    return sorted(answers, key=lambda answer: -answer["score"])[:top_k]


def _softmax(logits: Floats, taking_part: Flags) -> Floats:
    masked = np.where(taking_part, logits, -np.inf)
    powers = np.exp(masked - masked.max())
    result: Floats = powers / powers.sum()
    return result
