"""Words with tags, in the running text that the model will read: a tokenizer cuts single words in other ways."""

import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Sequence

#: How the Unicode names of characters begin whose scripts are written without blanks.
_WITHOUT_BLANKS = (
    "CJK", "HIRAGANA", "KATAKANA", "IDEOGRAPHIC", "FULLWIDTH", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN",
)  # fmt: skip


def join_words(words: Sequence[str]) -> tuple[str, list[int]]:
    """Return the words as a text, and where in it each of them begins.

    There is a blank between two words, but for those of a script that knows none.
    """
    text, starts = "", []
    for word in words:
        if text and not (_is_without_blanks(text[-1:]) and _is_without_blanks(word[:1])):
            text += " "
        starts.append(len(text))
        text += word
    return text, starts


def first_token_words(text: str, starts: Sequence[int], offsets: Iterable[tuple[int, int]]) -> list[int | None]:
    """Return for each token the number of the word whose first token it is, None for all others.

    Args:
        text: the words.
        starts: where each of them begins.
        offsets: of the tokens, in the text; special ones have none of it.
    """
    found: list[int | None] = []
    latest = -1
    for begin, end in offsets:
        piece = text[begin:end]
        visible = begin + len(piece) - len(piece.lstrip())  # some tokens begin with the blank before their word
        word = bisect_right(starts, visible) - 1 if visible < end else -1
        found.append(word if word > latest else None)
        latest = max(latest, word)
    return found


def _is_without_blanks(character: str) -> bool:
    return bool(character) and unicodedata.name(character, "").startswith(_WITHOUT_BLANKS)
