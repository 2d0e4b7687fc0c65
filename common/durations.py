"""Durations: parsed (`30s`, `5m`, `12h`, `7d`) and formatted."""

import re

from common.errors import UsageError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SPAN = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhdw])")


def parse_duration(text: str, option: str) -> float:
    """Return a duration in seconds; `0` needs no unit.

    Raises:
        UsageError: it is not a duration.
    """
    match = _SPAN.fullmatch(text.strip().lower())
    if match is None and text.strip() != "0":
        raise UsageError(f"{option} {text!r}: expected a duration such as 30s, 5m, 12h or 7d.")
    return float(match[1]) * _UNITS[match[2]] if match else 0.0


def format_span(seconds: float) -> str:
    """Return a duration as `parse_duration` reads it, in the largest unit that divides it."""
    unit = next((unit for unit in reversed(_UNITS) if seconds >= _UNITS[unit] and seconds % _UNITS[unit] == 0), "s")
    return f"{seconds / _UNITS[unit]:g}{unit}"


def format_duration(seconds: float) -> str:
    """Return a duration for people: 12s, 3m 20s, 2h 05m, 4d 03h."""
    whole = max(0, round(seconds))
    minutes, secs = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02}h"
    if hours:
        return f"{hours}h {minutes:02}m"
    return f"{minutes}m {secs:02}s" if minutes else f"{secs}s"
