"""Text for a terminal, a log or a table: others' text made safe, sizes made readable."""

import re

#: Control characters but for tab and line feed, and lone surrogates.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def replace_control_chars(text: str) -> str:
    """Return the text with control characters, and characters that UTF-8 cannot encode, replaced."""
    return _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str, max_chars: int | None = None) -> str:
    """Return the text as one line that can be shown, of at most `max_chars` characters."""
    line = replace_control_chars(" ".join(text.split()))
    return line if max_chars is None or len(line) <= max_chars else f"{line[: max_chars - 1]}…"


def human_size(size: float) -> str:
    """Return a number of bytes for people, such as `440 MB`, in units of 1000 like the Hub."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
