"""Masking words at random, with something to learn in every batch."""

from collections.abc import Sequence
from typing import Any

from transformers import DataCollatorForLanguageModeling

from workers.training.trainer.metrics import IGNORE_INDEX

#: Draws after which a batch of nothing but special tokens is left as it is.
_DRAWS = 100


class MaskingCollator(DataCollatorForLanguageModeling):  # type: ignore[misc]
    """The library's own collator; a draw that masks nothing at all is drawn again.

    In a batch of a few short texts that happens, and the mean loss over no word is no number.
    """

    def torch_call(self, examples: Sequence[Any]) -> dict[str, Any]:
        """Return a batch with at least one masked word."""
        for _ in range(_DRAWS):
            batch: dict[str, Any] = super().torch_call(examples)
            if (batch["labels"] != IGNORE_INDEX).any():
                break
        return batch
