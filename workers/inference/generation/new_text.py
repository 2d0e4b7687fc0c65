"""The new tokens of a text that `generate` has written: where it ends, and what it says."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import RecordError
from workers.inference.generation.constrained_decoding import CompiledConstraint


@dataclass(frozen=True, slots=True)
class NewText:
    """One text of a record: what follows its prompt, without padding."""

    tokens: list[int]  #: with the one that ends it
    length: int  #: how many they are without that one
    ended: bool  #: by itself, not by a limit

    @classmethod
    def read(cls, tokens: list[int], config: Any, tokenizer: Any) -> "NewText":
        """Return the text of the tokens after a prompt, which padding may follow.

        Args:
            tokens: as `generate` returned them.
            config: the generation configuration that wrote them.
            tokenizer: of the model.
        """
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        end = next((position for position, token in enumerate(tokens) if token in ends), len(tokens))
        if not _has_stop_string(tokens[:end], config, tokenizer):
            return cls(tokens[: end + 1], end, end < len(tokens))
        while end and tokens[end - 1] == config.pad_token_id:
            end -= 1
        return cls(tokens[:end], end, True)

    @property
    def finish_reason(self) -> str:
        """Why it ends there, as OpenAI's API says it: `stop` or `length`."""
        return "stop" if self.ended else "length"

    def under(self, constraint: CompiledConstraint, *, complete: bool) -> str:
        """Return the text that was written under a constraint.

        Args:
            constraint: what it must be.
            complete: whether a text that does not meet it is a failure.

        Raises:
            RecordError: `incomplete_output`.
        """
        tokens = self.tokens[: self.length]
        text = constraint.text(tokens)
        if complete and not constraint.is_met(tokens):
            raise RecordError(
                "incomplete_output",
                f"The text was not complete after {len(self.tokens)} tokens: {text[-200:]!r}. Allow more "
                "(-p max_new_tokens=N), or limit its length by the constraint (maxLength, maxItems).",
            )
        return text


def longest(texts: Sequence[NewText]) -> int:
    """Return the number of tokens of the longest text."""
    return max(len(text.tokens) for text in texts)


def _has_stop_string(tokens: list[int], config: Any, tokenizer: Any) -> bool:
    return bool(config.stop_strings) and any(stop in tokenizer.decode(tokens) for stop in config.stop_strings)
