"""What a task asks of an engine, and what it gets: an engine only continues token ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.records import Json


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one record asks of an engine."""

    tokens: list[int]
    images: Sequence[Any] = ()  #: decoded; one token of the prompt stands for each
    seed: int | None = None  #: of sampling; None for a random one
    structure: Mapping[str, Json] | None = None  #: what the text must be: `json` or `regex`
    logprobs: int | None = None  #: how many of the most likely tokens to tell of beside each; None: none at all


@dataclass(slots=True)
class Continuation:
    """A text that an engine has written."""

    prompt: list[int] = field(default_factory=list)  #: the tokens that it continues, those of images included
    tokens: list[int] = field(default_factory=list)  #: the new ones, with the one that ends it
    #: For each token: the log-probabilities, before sampling, of itself and of the most likely ones.
    logprobs: list[Mapping[int, float]] = field(default_factory=list)
