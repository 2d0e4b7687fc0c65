"""Log-probabilities of generated tokens: what the model itself gave each, before sampling and constraints change it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from common.errors import ModelError
from common.records import Json

#: Parameters with which a row of the batch is not one text, token by token; and their values without effect.
_CONFLICTING: dict[str, tuple[Any, ...]] = {"num_beams": (None, 1), "prompt_lookup_num_tokens": (None,)}

#: What OpenAI's API gives for a token of no probability: JSON has no infinities.
_IMPOSSIBLE = -9999.0


class LogprobRecorder(StoppingCriteria):  # type: ignore[misc]
    """Notes the log-probability of each token as it is chosen, and the most likely ones beside it.

    The scores of a step are dropped at the next one: all of them, as `output_logits` returns them, fill the memory. It
    stops no text by itself.

    Args:
        top: how many of the most likely tokens to note.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self._scores = torch.empty(0)
        self._chosen: list[Tensor] = []
        self._ids: list[Tensor] = []
        self._values: list[Tensor] = []

    def note_scores(self, _module: Any, _inputs: Any, outputs: Any) -> None:
        """Take the output of a forward pass, before the next token is chosen."""
        self._scores = outputs.logits[:, -1].float().log_softmax(dim=-1).clamp(min=_IMPOSSIBLE)

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Note the token that was chosen last in each row, of shape (rows, tokens); return False for each."""
        values, ids = self._scores.topk(min(self._top, self._scores.shape[1]))
        self._chosen.append(self._scores.gather(1, input_ids[:, -1:].to(self._scores.device)))
        self._values.append(values)
        self._ids.append(ids)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def rows(self, text_of: Callable[[int], str], texts: list[list[int]]) -> list[list[dict[str, Json]]]:
        """Return the tokens of each row: `token`, `logprob`, and `top_logprobs` with the most likely ones.

        Args:
            text_of: returns the text of a token.
            texts: the tokens of each row, without the one that ends it.
        """
        chosen = torch.cat(self._chosen, dim=1).tolist()
        values, ids = (torch.stack(parts, dim=1).tolist() for parts in (self._values, self._ids))
        return [
            [
                describe(text_of, token, chosen[row][step], zip(ids[row][step], values[row][step], strict=True))
                for step, token in enumerate(tokens)
            ]
            for row, tokens in enumerate(texts)
        ]


def describe(
    text_of: Callable[[int], str], token: int, logprob: float, top: Iterable[tuple[int, float]]
) -> dict[str, Json]:
    """Return what is told of a token.

    Args:
        text_of: returns the text of a token.
        token: the one that was chosen.
        logprob: of it.
        top: the most likely ones, with theirs.
    """
    return {
        "token": text_of(token),
        "logprob": max(logprob, _IMPOSSIBLE),
        "top_logprobs": [{"token": text_of(other), "logprob": max(value, _IMPOSSIBLE)} for other, value in top],
    }


def token_texts(tokenizer: Any) -> Callable[[int], str]:
    """Return what gives the text of a token, with the space before it: many tokenizers drop that of a first one."""

    @cache
    def text_of(token: int) -> str:
        text: str = tokenizer.decode([token, token])
        return text[len(tokenizer.decode([token])) :]

    return text_of


@contextmanager
def recorded_logprobs(model: Any, top: int | None) -> Iterator[LogprobRecorder | None]:
    """Yield what notes the log-probabilities of a run of `generate`; None where none are asked for."""
    if top is None:
        yield None
        return
    recorder = LogprobRecorder(top)
    hook = model.register_forward_hook(recorder.note_scores)
    try:
        yield recorder
    finally:
        hook.remove()


def check_logprobs(top: int | None, config: Any) -> None:
    """Check that log-probabilities can be noted with this generation configuration.

    Raises:
        ModelError: `bad_param`.
    """
    if top is None:
        return
    for name, noop in _CONFLICTING.items():
        if (value := getattr(config, name, noop[0])) not in noop:
            raise ModelError(
                "bad_param",
                f"logprobs cannot be combined with {name}={value!r:.80}, a parameter of the job or of the model's "
                "generation configuration.",
            )
