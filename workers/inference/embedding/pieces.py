"""Pieces of texts: a long text is cut into windows of tokens that overlap, each of which gets a vector of its own.

A piece is a place in the text, and its vector is that of the text in this place, tokenized anew: what
sentence-transformers gives for `text[start:end]`. (The token ids of the whole text would give another vector where a
word is cut.) So pieces begin and end at words, as the tokenizer sees them, unless a word is longer than a piece.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from workers.inference.text.tokenization import TokenizedText


@dataclass(frozen=True, slots=True)
class Split:
    """How texts are cut."""

    tokens: int  #: of a piece at most, without special tokens
    overlap: int  #: tokens that neighboring pieces share at least; at most half of `tokens`


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text."""

    position: int  #: of the text among the inputs
    start: int  #: its first character, an index of the text as a Python str
    end: int  #: the character behind its last


def cut_pieces(position: int, text: str, tokenized: TokenizedText, split: Split) -> list[Piece]:
    """Return the pieces of a text, in order.

    Args:
        position: of the text among the inputs.
        text: not blank.
        tokenized: the whole text by a fast tokenizer, without special tokens.
        split: how to cut it; a text of no more tokens than a piece is one piece, all of it.
    """
    if len(tokenized) <= split.tokens:
        return [Piece(position, 0, len(text))]
    offsets = tokenized.encoding.offsets
    pieces = [
        Piece(position, offsets[first][0], offsets[last - 1][1])
        for first, last in _windows(tokenized.encoding.word_ids, split)
    ]
    return [piece for piece in pieces if text[piece.start : piece.end].strip()]


def _windows(words: Sequence[int | None], split: Split) -> Iterator[tuple[int, int]]:
    """Yield the first token of each piece and the one behind its last; `words` has the word of each token."""
    first, last = 0, split.tokens
    while last < len(words):
        last = _word_start(words, last, above=first + split.overlap)
        yield first, last
        first = _word_start(words, last - split.overlap, above=first)
        last = first + split.tokens
    yield first, len(words)


def _word_start(words: Sequence[int | None], token: int, above: int) -> int:
    """Return the first token of the word that a token belongs to, or the token itself if that is not above `above`."""
    start = token
    while start > above and words[start] == words[start - 1]:
        start -= 1
    return start if start > above else token
