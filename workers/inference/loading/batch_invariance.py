"""Batch invariance: whether a text's output depends on other texts of its batch, tested once when a model is loaded.

An attention mask hides padding from attention only. Convolutions, Fourier transforms, recurrent states and positions
counted from the left may see it; experts of limited capacity and random hashing even see neighbors of equal length.
Architectures do not declare this, so each model is tested: its outputs for a short and a long text in one batch are
compared with those for each alone. The result is kept in the budget, which `make_batches` obeys.
"""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from workers.inference.core.device_errors import is_device_lost, is_out_of_memory
from workers.inference.core.fallbacks import count_fallback
from workers.inference.core.token_budget import TokenBudget
from workers.inference.loading.dtypes import in_full_precision, is_reduced_precision
from workers.inference.loading.outputs_match import outputs_match

logger = logging.getLogger(__name__)

#: A tokenized text: a mapping from the model's arguments to arrays, or to tensors of shape (1, tokens, ...).
Features = Any
#: Runs one batch; returns the outputs of each row, without those of padding.
Run = Callable[[Sequence[Features]], Sequence[Sequence[Tensor]]]

#: New tokens in a trial of generation: one after the prompt, one after the cache.
_STEPS = 2
#: Tokens that it may generate: every vocabulary has them.
_TOKENS = range(5, 64)
#: Larger models are not tested in float32, which takes four more bytes for each weight.
_MAX_WEIGHTS = 1_000_000_000


def ensure_batch_invariance(budget: TokenBudget, model: Any, rows: Callable[[], Sequence[Features]], run: Run) -> None:
    """Restrict batches to those whose texts give the same outputs as alone; a trial that raises counts as a difference.

    Args:
        budget: gets `equal_lengths` if padding changes outputs, and one item for each batch if any neighbor does.
        model: the model to test.
        rows: returns tokenized texts, of several lengths if the model takes them.
        run: runs a batch of such rows like the runner does.
    """
    if budget.items == 1:
        return
    equal = False
    try:
        short, odd, long, backwards = _trial_texts(rows())
        if same_in_batch(model, run, short, odd, long):
            return
        equal = _same_in_batch(run, short, backwards, loose=is_reduced_precision(model))
    except Exception as error:  # any architecture may be loaded, and may raise anything
        if is_out_of_memory(error) or is_device_lost(error):  # not a property of the model
            raise
        logger.debug("the batches of %s cannot be tested", type(model).__name__, exc_info=True)
        count_fallback("batch_invariance", error)
    budget.equal_lengths = True
    if not equal:
        budget.items = 1
    what = "texts of equal length" if equal else "one text"
    logger.info("batches of %s hold %s: other batches would change its outputs", type(model).__name__, what)


def same_in_batch(model: Any, run: Run, *rows: Features) -> bool:
    """Whether these rows give the same outputs together as each of them alone, but for rounding.

    Args:
        model: the model to test.
        run: runs a batch of such rows like the runner does.
        rows: as `run` takes them.
    """
    loose = is_reduced_precision(model)
    return _same_in_batch(run, *rows, loose=loose) or (loose and _same_in_float32(model, run, *rows))


def _trial_texts(rows: Sequence[Features]) -> tuple[Features, Features, Features, Features]:
    """Return a short text, it without its second token, a long text, and the short one backwards."""
    found = [row for row in rows if _length(row)]
    long, short = max(found, key=_length), min(found, key=_length)
    if _length(short) == _length(long):
        short = _pick(long, range(_length(long) // 2, _length(long)))
    positions = range(_length(short))
    odd = _pick(short, [position for position in positions if position != 1])  # for models that pool neighboring tokens
    return short, odd, long, _pick(short, positions[::-1])  # backwards: as long, with as many of each special token


def next_token_logits(model: Any, inputs: Mapping[str, Any], rows: int) -> list[list[Tensor]]:
    """Return the logits of the next tokens for each row of a batch, as `generate` computes them.

    The tokens are forced: where two are about equally likely, a batch could choose another one than a text alone, and
    all that follows would differ.
    """
    config = copy.deepcopy(model.generation_config)
    config.update(
        do_sample=False,
        max_new_tokens=_STEPS,
        max_length=None,
        num_beams=1,
        num_return_sequences=1,
        output_logits=True,
        return_dict_in_generate=True,
    )
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    token = next(token for token in _TOKENS if token not in ends)
    forced = LogitsProcessorList([_ForcedToken(token)])
    found = model.generate(**inputs, generation_config=config, logits_processor=forced)
    return [[step[row] for step in found.logits] for row in range(rows)]


class _ForcedToken(LogitsProcessor):  # type: ignore[misc]
    """Forces one token, whatever its score."""

    def __init__(self, token: int) -> None:
        self._token = token

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores of shape (rows, vocabulary)."""
        only = torch.full_like(scores, float("-inf"))
        only[:, self._token] = 0
        return only


def _same_in_batch(run: Run, *rows: Features, loose: bool) -> bool:
    """Whether these rows give the same outputs together as each of them alone."""
    separate = [run([row])[0] for row in rows]
    try:
        together = run(rows)
    except Exception as error:  # a model may refuse to be padded
        if is_out_of_memory(error) or is_device_lost(error):
            raise
        return False
    return all(
        outputs_match(one, other.cpu().float(), loose=loose)
        for found, expected in zip(together, separate, strict=True)
        for one, other in zip(found, expected, strict=True)
    )


def _same_in_float32(model: Any, run: Run, *rows: Features) -> bool:
    """Whether these rows agree in float32: a deep model's rounding in lower precision can look like padding."""
    if sum(tensor.nelement() for tensor in model.parameters()) > _MAX_WEIGHTS:
        return False
    try:
        with in_full_precision(model):
            return _same_in_batch(run, *rows, loose=False)
    except Exception as error:  # its attention may not support float32, and memory may run out
        if is_device_lost(error):
            raise
        logger.debug("%s cannot be tested in float32", type(model).__name__, exc_info=True)
        return False


def _length(row: Features) -> int:
    ids = row["input_ids"]
    return int(ids.shape[1]) if isinstance(ids, Tensor) else len(ids)


def _pick(row: Features, positions: Sequence[int]) -> Features:
    """Return a row with the tokens at these positions."""
    tokens = _length(row)
    return {
        name: value[:, list(positions)]
        if isinstance(value, Tensor) and value.dim() > 1 and value.shape[1] == tokens
        else value[list(positions)]
        if isinstance(value, np.ndarray) and len(value) == tokens
        else value
        for name, value in row.items()
    }
