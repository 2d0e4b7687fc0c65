"""Token budgets: how much one batch may hold, calibrated when a model is loaded and lowered when memory runs out."""

import logging
from dataclasses import dataclass

logger = logging.getLogger(__name__)

#: Padded tokens in one batch, where nothing better was measured.
DEFAULT_TOKENS = {"cpu": 2048, "cuda": 32768}
#: The same for generation, where each step reads all weights for one token of each item, and cached tokens are cheap:
#: on a CPU, 64 prompts of 128 new tokens took a fifth less time than with the budget of a forward pass.
GENERATION_TOKENS = {"cpu": 8192, "cuda": 32768}
#: Items in one batch at most: beyond it, batches of short texts gain nothing and hold much memory.
MAX_ITEMS = {"cpu": 64, "cuda": 1024}
#: Bounds of the budgets kept for the next process: one huge record must not make all batches tiny for good.
MIN_CACHED_TOKENS, MAX_TOKENS = 256, 1 << 20


@dataclass(slots=True)
class TokenBudget:
    """How many tokens a batch may hold, padding included where there is any."""

    tokens: int
    items: int
    equal_lengths: bool = False  #: whether nothing may be padded, since padding changes what the model gives
    pads_to_longest: bool = True  #: whether each item of a batch takes as many tokens as the longest
    splits_by_length: bool = True  #: whether another batch is cheaper than padding much shorter items
    calibrated: bool = False  #: whether it was measured, here or earlier, or is not to be measured
    tokens_run: int = 0  #: so far

    @classmethod
    def of(cls, device: str, *, generates: bool = False) -> "TokenBudget":
        """Return the initial budget on `device` (`cpu`, `cuda:0`).

        Generation is too slow to be calibrated, and pays for another batch at every token it generates.
        """
        kind = device.partition(":")[0]
        tokens = (GENERATION_TOKENS if generates else DEFAULT_TOKENS).get(kind, 2048)
        return cls(tokens, MAX_ITEMS.get(kind, 64), splits_by_length=not generates, calibrated=generates)

    def lower(self, tokens: int) -> None:
        """Halve the budget after a batch of `tokens` did not fit into memory."""
        self.tokens = max(1, min(self.tokens, tokens // 2))
        logger.warning("out of memory with %d tokens: batches now hold %d", tokens, self.tokens)
