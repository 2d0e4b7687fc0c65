"""Benchmark texts: generated from a fixed word list with a fixed seed, so that no download is needed.

Lengths are in words; a WordPiece tokenizer makes about one token of each.
"""

import random
from collections.abc import Callable, Iterator

#: Common words that are single tokens in every vocabulary used here.
WORDS = (  # noqa: SIM905
    "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they "
    "which one you were all her she there would their we him been has when who will no more if out so what up "
    "said about time people year day man world life hand part child eye woman place work week case point "
    "government company number group problem fact house water room book word business issue side kind head far "
    "black long right great small large next early young important few public bad same able"
).split()


def short(rng: random.Random) -> int:
    """Return a length of 12 words on average, as of search queries and titles."""
    return max(2, min(64, round(rng.lognormvariate(2.3, 0.6))))


def paragraph(rng: random.Random) -> int:
    """Return a length of 140 words on average, as of reviews and abstracts."""
    return max(40, min(400, round(rng.gauss(140, 45))))


def mixed(rng: random.Random) -> int:
    """Return a length of 36 words on average, mostly short and some long, as in a table of user texts."""
    return max(2, min(400, round(rng.lognormvariate(3.1, 0.95))))


MIXES: dict[str, Callable[[random.Random], int]] = {"short": short, "paragraph": paragraph, "mixed": mixed}


def texts(mix: str, count: int, seed: int = 7) -> list[str]:
    """Return `count` texts of the mix; `repeated` is `mixed` with a fifth of the records repeated."""
    rng = random.Random(f"{mix} {seed}")
    if mix == "repeated":
        once = texts("mixed", count - count // 5, seed)
        found = once + [rng.choice(once) for _ in range(count // 5)]
        rng.shuffle(found)
        return found
    return [" ".join(_sentence(rng, MIXES[mix](rng))) + "." for _ in range(count)]


def masked(sources: list[str], mask: str, seed: int = 7) -> list[str]:
    """Return the texts with one word of each replaced by the mask."""
    rng = random.Random(seed)
    found = []
    for source in sources:
        words = source.split()
        words[rng.randrange(len(words) - 1)] = mask
        found.append(" ".join(words))
    return found


def _sentence(rng: random.Random, length: int) -> Iterator[str]:
    return (rng.choice(WORDS) for _ in range(length))
