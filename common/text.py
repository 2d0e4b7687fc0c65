"""Texts that others wrote, made fit for a terminal, a log or a table."""

import re

#: Control characters but for tab and line feed, and lone surrogates.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def replace_control_chars(text: str) -> str:
    """Return the text, what a terminal would obey and what has no UTF-8 form replaced."""
    return _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str, most: int | None = None) -> str:
    """Return the text as one line that can be shown, of at most `most` characters."""
    line = replace_control_chars(" ".join(text.split()))
    return line if most is None or len(line) <= most else f"{line[: most - 1]}…"
