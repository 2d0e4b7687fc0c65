"""What an engine is: a program that schedules texts by itself, however many are in flight.

Tasks make prompts and outputs as they do for transformers; an engine only continues token ids. Nothing here imports
one, and no engine is imported unless a worker is started with it.
"""

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from common.records import Json


class EngineRefusal(Exception):
    """Raised when an engine does not serve a model; transformers runs it instead."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one record asks of an engine."""

    tokens: list[int]
    seed: int | None = None  #: of sampling; None for a random one
    structure: Mapping[str, Json] | None = None  #: what the text must be: `json` or `regex`
    logprobs: int | None = None  #: how many of the most likely tokens to tell of beside each; None: none at all


@dataclass(frozen=True, slots=True)
class Continuation:
    """A text that an engine has written."""

    tokens: list[int] = field(default_factory=list)  #: the new ones, with the one that ends it
    #: For each token: the log-probabilities, before sampling, of itself and of the most likely ones.
    logprobs: list[Mapping[int, float]] = field(default_factory=list)


class Engine(Protocol):
    """A loaded model that generates."""

    #: How many tokens a prompt and its text may have together.
    context: int
    #: About how much of the device's memory it has taken.
    memory_bytes: int
    #: How many outputs it has given: while texts are in flight, one that works adds to it.
    progress: int

    @property
    def died(self) -> bool:
        """Whether it can generate no more."""

    def refusal(self, config: Any) -> str | None:
        """Return what this engine lacks for a generation configuration, None if it can follow it."""

    def submit(self, prompt: Prompt, config: Any) -> "Future[list[Continuation]]":
        """Queue a prompt; return what follows it, once for each copy.

        Cancelling the future ends the generation. Any thread may call this.

        The future raises:
            EngineDied: it has ended.
            RecordError: it does not take this prompt.
        """

    def close(self) -> None:
        """End it, and free its memory."""
