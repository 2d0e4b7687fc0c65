"""Suggestions of similar names, for messages about unknown names."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a sentence with names similar to `name`, or with all names if there are few."""
    names = sorted(known)
    folded = {known_name.casefold(): known_name for known_name in names}
    near = [folded[found] for found in difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.6)]
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return f"Expected one of {', '.join(names)}." if len(names) <= 12 else "No similar name is known."
