"""How a sentence marks its key words, and how a table of pairs becomes sentences.

A sentence here is a string whose key words stand in braces: `The capital of France is {Paris}.` Those are the
words worth asking for; each is one entry of the demo model's vocabulary. This file knows no sentences itself.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

_SLOT = re.compile(r"\{([^{}]*)\}")
_PARTICLE = re.compile(r"([가-힣])(\}?)(은/는|이/가|을/를|과/와)")
_ARTICLE = re.compile(r"\b([Aa])/an( \{?)(?=(\w))")


@dataclass(frozen=True, slots=True)
class Relation:
    """Pairs of words that belong together, and the ways to say so; `{a}` and `{b}` are the pair."""

    pairs: tuple[tuple[str, str], ...]
    phrasings: tuple[str, ...]

    def sentences(self) -> Iterator[str]:
        """Yield every pair in every phrasing."""
        for a, b in self.pairs:
            for phrasing in self.phrasings:
                yield agree(phrasing.format(a=slot(a), b=slot(b)))


def slot(words: str) -> str:
    """Mark a word as worth asking for; what is more than one word cannot be asked for with one mask."""
    return words if " " in words else f"{{{words}}}"


def agree(text: str) -> str:
    """Choose what is written as a choice: `은/는` by the sound of the word before it, `a/an` by the one after."""

    def chosen(match: re.Match[str]) -> str:
        syllable, brace, choice = match.groups()
        after_consonant, after_vowel = choice.split("/")
        ends_in_consonant = (ord(syllable) - ord("가")) % 28 != 0  # 28 finals a vowel, the first of them none
        return syllable + brace + (after_consonant if ends_in_consonant else after_vowel)

    text = _ARTICLE.sub(lambda m: m[1] + ("n" if m[3].lower() in "aeiou" else "") + m[2], text)
    return _PARTICLE.sub(chosen, text)


def slots(sentence: str) -> list[str]:
    """Return the marked words of a sentence, in order."""
    return _SLOT.findall(sentence)


def plain(sentence: str) -> str:
    """Return the sentence as people write it."""
    return _SLOT.sub(r"\1", sentence)


def masked(sentence: str, hidden: set[int], mask: str = "[MASK]") -> str:
    """Return the sentence with the marked words at the positions `hidden` replaced by `mask`."""
    position = itertools.count()
    return _SLOT.sub(lambda match: mask if next(position) in hidden else match.group(1), sentence)
