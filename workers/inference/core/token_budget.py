"""How much one batch may hold: in tokens, fitted to the device when a model is loaded, lowered when memory runs out."""

import logging
from dataclasses import dataclass

logger = logging.getLogger(__name__)

#: Padded tokens in one batch, where nothing better was measured.
DEFAULT_TOKENS = {"cpu": 2048, "cuda": 32768}
#: The same for generation, where each step reads all weights for one token of each item, and tokens that are cached
#: cost little: on a CPU 64 prompts of 128 new tokens took a fifth less time so than with what suits a forward pass.
GENERATION_TOKENS = {"cpu": 8192, "cuda": 32768}
#: Items in one batch at most: beyond it, batches of short texts gain nothing and hold much memory.
MAX_ITEMS = {"cpu": 64, "cuda": 1024}
#: Bounds of what is kept for the next process: one huge record must not make all batches tiny for good.
MIN_CACHED_TOKENS, MAX_TOKENS = 256, 1 << 20


@dataclass(slots=True)
class TokenBudget:
    """How many padded tokens a batch may hold; lowered for good when memory runs out."""

    tokens: int
    items: int
    equal_lengths: bool = False  #: whether nothing may be padded: the model lets padding be seen
    pads_to_longest: bool = True  #: whether a batch is as long as its longest item, for each of them
    calibrated: bool = False  #: whether it was measured, here or earlier, or is not to be
    tokens_run: int = 0  #: padded tokens that ran so far

    @classmethod
    def of(cls, device: str, *, generates: bool = False) -> "TokenBudget":
        """Return the budget to begin with on `device` (`cpu`, `cuda:0`); to generate takes too long for trials."""
        kind = device.partition(":")[0]
        tokens = (GENERATION_TOKENS if generates else DEFAULT_TOKENS).get(kind, 2048)
        return cls(tokens, MAX_ITEMS.get(kind, 64), calibrated=generates)

    def lower(self, tokens: int) -> None:
        """Take note that a batch of so many padded tokens did not fit into memory."""
        self.tokens = max(1, min(self.tokens, tokens // 2))
        logger.warning("out of memory with %d tokens: batches now hold %d", tokens, self.tokens)
