"""Constrained decoding: at every token only what the constraint allows may follow, so a finished text meets it.

Constraints are compiled by llguidance, which refuses a schema that it cannot follow to the letter, or that no text
meets. Each row of a batch has a matcher of its own, or none, so records with different constraints share a batch.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from llguidance import LLExecutor, LLMatcher
from llguidance.hf import from_tokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par
from transformers import LogitsProcessor

from common.errors import ModelError
from common.output_constraints import Constraint
from common.records import Json

#: White space between the parts of JSON: enough to indent it, too little to write nothing else.
_WHITE_SPACE = {"whitespace_pattern": r"( |\r?\n[ \t]{0,16})?"}
#: How many compiled constraints are kept: requests of a batch file may have one each.
_KEPT = 256
#: Parameters of `generate` that may forbid what a constraint requires, end a text before it is complete, or write it
#: other than token by token; and their values without effect.
_CONFLICTING: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "prompt_lookup_num_tokens": (None,),
    "stop_strings": (None, []),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None,),
    "sequence_bias": (None,),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "remove_invalid_values": (None, False),
}


class CompiledConstraint:
    """A constraint over the tokens of one model.

    Args:
        matcher: of its texts.
        tokenizer: of the model, as llguidance reads it.
        structure: a JSON schema as `json`, or a regular expression as `regex`: for engines with a matcher of their own.
    """

    def __init__(self, matcher: LLMatcher, tokenizer: Any, structure: Mapping[str, Json]) -> None:
        self.structure = structure
        self._matcher = matcher
        self._tokenizer = tokenizer
        self.ends = frozenset(tokenizer.eos_tokens)
        self.vocabulary: int = tokenizer.vocab_size  #: at least as many as the model scores

    def start(self) -> LLMatcher:
        """Return a matcher at the beginning of a text."""
        return self._matcher.deep_copy()

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text that was matched, exactly: the model's own decoding may drop or merge spaces."""
        return str(self._tokenizer.decode_str(list(tokens)))

    def is_met(self, tokens: Sequence[int]) -> bool:
        """Whether the text of these tokens, which include none that ends it, is complete."""
        matcher = self.start()
        return bool(matcher.consume_tokens(list(tokens)) and matcher.is_accepting())


class ConstraintCompiler:
    """Compiles constraints for one model, and keeps them.

    Args:
        tokenizer: of the model.
        vocabulary: how many tokens the model scores; its tokenizer may have fewer.
    """

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = max(vocabulary, len(tokenizer))
        self._read_vocabulary = lru_cache(maxsize=2)(self._read_vocabulary_once)
        self._compile = lru_cache(maxsize=_KEPT)(self._compile_once)

    def compile(self, constraint: Constraint, config: Any) -> CompiledConstraint:
        """Return the constraint, for texts that are generated with this configuration.

        Raises:
            ModelError: `bad_param`: no text meets it, it cannot be followed to the letter, the configuration conflicts
                with it, or the model's tokenizer cannot be constrained.
        """
        kind = constraint.kind
        for name, noop in _CONFLICTING.items():
            if (value := getattr(config, name, noop[0])) not in noop:
                raise ModelError(
                    "bad_param",
                    f"{kind} cannot be combined with {name}={value!r:.80}, a parameter of the job or of the model's "
                    "generation configuration.",
                )
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        if None in ends:
            raise ModelError("bad_param", f"{kind} needs a model that ends its texts; this one has no eos_token_id.")
        return self._compile(kind, constraint.text, tuple(ends))

    def _compile_once(self, kind: str, text: str, ends: tuple[int, ...]) -> CompiledConstraint:
        tokenizer = self._read_vocabulary(ends)
        try:
            value = json.loads(text)
            matcher = LLMatcher(tokenizer, _grammar(kind, value), log_level=0)
        except ValueError as error:
            raise _refusal(kind, str(error)) from error
        first = matcher.deep_copy()
        first.compute_bitmask()  # shows what has no end, such as a schema that contains itself
        if first.is_error():
            raise _refusal(kind, first.get_error())
        return CompiledConstraint(matcher, tokenizer, _structure(kind, value))

    def _read_vocabulary_once(self, ends: tuple[int, ...]) -> Any:
        try:
            return from_tokenizer(self._tokenizer, n_vocab=self._vocabulary, eos_token=list(ends))
        except ValueError as error:
            raise ModelError(
                "bad_param", f"The texts of this model cannot be constrained, for its kind of tokenizer: {error}."
            ) from error


class ConstraintProcessor(LogitsProcessor):  # type: ignore[misc]
    """Lets only tokens pass that continue the text of their row as its constraint allows.

    Args:
        constraints: one for each record of the batch, or None.
        copies: `num_return_sequences`: the rows of one record are adjacent.
    """

    def __init__(self, constraints: Sequence[CompiledConstraint | None], copies: int = 1) -> None:
        rows = [constraint for constraint in constraints for _ in range(copies)]
        self._ends = {row: constraint.ends for row, constraint in enumerate(rows) if constraint}
        #: Of the texts that are not at their end, by row.
        self._matchers = {row: constraint.start() for row, constraint in enumerate(rows) if constraint}
        self._vocabulary = max(constraint.vocabulary for constraint in rows if constraint)
        self._executor = LLExecutor()
        self._started = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores of shape (rows, vocabulary): minus infinity for what a row's constraint does not allow."""
        if self._started:
            self._consume(input_ids[:, -1].tolist())
        self._started = True
        if not self._matchers:
            return scores
        mask = allocate_token_bitmask(len(scores), self._vocabulary)  # everything is allowed in rows without a matcher
        fill_next_token_bitmask_par(self._executor, [(one, row) for row, one in self._matchers.items()], mask)
        return scores.masked_fill(~_unpack(torch.from_numpy(mask).to(scores.device), scores.shape[1]), float("-inf"))

    def _consume(self, tokens: Sequence[int]) -> None:
        for row in [row for row in self._matchers if tokens[row] in self._ends[row]]:
            del self._matchers[row]  # what follows is padding
        if not self._matchers:
            return
        # A matcher that fails, for a limit of llguidance, allows only the end from then on; the text is incomplete.
        self._executor.consume_token_par([(one, tokens[row]) for row, one in self._matchers.items()])


def _unpack(mask: torch.Tensor, columns: int) -> torch.Tensor:
    """Return a boolean for each bit of a mask of shape (rows, words of 32 bits), as shape (rows, columns)."""
    octets = mask.view(torch.uint8)
    powers = 2 ** torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (octets.unsqueeze(-1) & powers).ne(0).flatten(1)[:, :columns]


def _grammar(kind: str, value: Any) -> str:
    """Return a constraint in llguidance's own form."""
    if kind == "json_schema":
        return str(LLMatcher.grammar_from_json_schema(json.dumps(value), overrides=_WHITE_SPACE))
    return str(LLMatcher.grammar_from_regex(_regex(kind, value)))


def _structure(kind: str, value: Any) -> Mapping[str, Json]:
    """Return a constraint as a JSON schema or a regular expression for an engine.

    Its llguidance may be too old to know a pattern of white space; a model could then write nothing else.
    """
    if kind == "json_schema":
        return {"json": {**value, "x-guidance": {"whitespace_flexible": False}}}
    return {"regex": _regex(kind, value)}


def _regex(kind: str, value: Any) -> str:
    return str(value) if kind == "regex" else "|".join(map(_escape, value))


def _escape(text: str) -> str:
    return "".join(char if char.isascii() and char.isalnum() else f"\\x{{{ord(char):x}}}" for char in text)


def _refusal(kind: str, message: str) -> ModelError:
    """Return the error for a constraint, with the part of llguidance's message that is for people."""
    lines = message.splitlines() or ["unknown error"]
    reason = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
    if reason.startswith("NoExtension"):
        reason = "no text meets it"
    return ModelError("bad_param", f"{kind} cannot be followed: {reason[:500].rstrip('.')}.")
