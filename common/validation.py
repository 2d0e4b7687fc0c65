"""Checks of untrusted values by declaration: `msgspec`'s, whose messages also say what was found."""

import re
from typing import Any

import msgspec

#: What the patterns in use mean, for people.
_MEANINGS: dict[str, str] = {}
_ERROR = re.compile(r"(?P<words>.*) - at (?P<key>`key` in )?`\$\.(?P<path>(?P<field>\w+).*)`\Z", re.DOTALL)


def pattern(regex: str, meaning: str) -> msgspec.Meta:
    """Return a constraint on a text; a message says `meaning` instead of the regular expression."""
    _MEANINGS[f"`str` matching regex {regex!r}"] = meaning
    return msgspec.Meta(pattern=regex)


def one_line_of(length: int) -> msgspec.Meta:
    """Return a constraint: one line of at most `length` characters, none of them a control character or surrogate."""
    regex = rf"^[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{{0,{length}}}\Z"
    return pattern(regex, f"one line of up to {length:,} characters")


def one_of(*names: str) -> msgspec.Meta:
    """Return a constraint: one of these texts."""
    return pattern(rf"^({'|'.join(map(re.escape, names))})\Z", f"one of {', '.join(names)}")


def checked(value: object, kind: Any, what: str, *, strict: bool = True) -> Any:
    """Return a decoded JSON value as a value of `kind`.

    Args:
        value: None, bool, int, float, str, list and dict of them.
        kind: what `msgspec.convert` takes, a dataclass for example.
        what: what the value is, for messages: `a job`.
        strict: False takes a text such as `5` where a number is expected.

    Raises:
        ValueError: the value does not fit; the message names the field, what is expected and what was found.
    """
    try:
        return msgspec.convert(value, kind, strict=strict)
    except msgspec.ValidationError as error:
        words, found, where = str(error), value, what
        if match := _ERROR.match(words):
            words, found = match["words"], value.get(match["field"]) if isinstance(value, dict) else value
            where = f"{what}'s {'key in ' if match['key'] else ''}{match['path']}"
        for regex, meaning in _MEANINGS.items():
            words = words.replace(regex, meaning)
        words = re.sub(r"`str` of length <= (\d+)", r"a text of up to \1 characters", words)
        tail = "" if "missing required" in words else f", found {found!r:.80}"
        raise ValueError(f"{where}: {words[:1].lower()}{words[1:]}{tail}") from error
