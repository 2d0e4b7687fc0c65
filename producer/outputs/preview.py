"""Rows in short, for a table on a terminal: what the output says, by its shape. Knows no task and no terminal."""

import re
from collections.abc import Mapping
from itertools import islice

from common.json_codec import to_json
from common.records import Json
from common.results import ResultRow

#: Characters of a cell; the terminal wraps or cuts what is still too long for it.
WIDTH = 120

_BEST = 3  # of ranked answers
# Escape sequences of a text must not reach the terminal; lone surrogates cannot.
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_TEXT_KEYS = ("generated_text", "translation_text", "summary_text", "answer", "content", "text")


def preview(row: ResultRow) -> tuple[str, str, str]:
    """Return id, input and output (or the error's code and message) as short lines of text."""
    output = f"{row.error.code}: {row.error.message}" if row.error else _output(row.output)
    return _short(row.id), _short(_input(row.input)), _short(output)


def _short(value: Json) -> str:
    text = value if isinstance(value, str) else to_json(value)
    text = _UNPRINTABLE.sub(" ", text[: 4 * WIDTH]).strip()
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


def _input(value: Json) -> Json:
    if isinstance(value, Mapping):
        return " · ".join(_short(_input(part)) for part in value.values())
    if isinstance(value, list) and value and isinstance(value[-1], Mapping) and "content" in value[-1]:
        return value[-1]["content"]  # a chat: what was said last
    return value


def _output(value: Json) -> str:
    if isinstance(value, Mapping):
        return _object(value)
    if isinstance(value, list) and value:
        return _list(value)
    return _short(value)


def _list(value: list[Json]) -> str:
    first = value[0]
    if isinstance(first, Mapping):
        best = " · ".join(_object(item) for item in islice(value, _BEST))
        return best + (" · …" if len(value) > _BEST else "")
    if isinstance(first, list):
        if isinstance(_innermost(first), int | float):
            return f"{_shape(value)} numbers"
        return " | ".join(_output(item) for item in value)  # several masks in one text
    if isinstance(first, int | float):
        return _vector(value)
    return ", ".join(_short(item) for item in islice(value, _BEST))


def _object(value: Mapping[str, Json]) -> str:
    if isinstance(value.get("labels"), list) and isinstance(value.get("scores"), list):
        pairs = islice(zip(value["labels"], value["scores"], strict=False), _BEST)
        return " · ".join(f"{label}{_score(score)}" for label, score in pairs)
    name = _name(value)
    if name is None and isinstance(value.get("depth"), str):
        return "a map of distances"
    if name is None:
        return _short(value)
    label = value.get("entity_group", value.get("entity")) or ""
    return f"{name}{' ' if label else ''}{label}{_score(value.get('score'))}"


def _name(value: Mapping[str, Json]) -> str | None:
    """The word, label or text that the object is about."""
    for key in ("token_str", "word", "label", *_TEXT_KEYS):
        if value.get(key) is not None:
            return _short(_input(value[key]))
    return None


def _score(score: Json) -> str:
    return f" {score:.3f}" if isinstance(score, float) else ""


def _vector(numbers: list[Json]) -> str:
    if len(numbers) <= _BEST:
        return to_json(numbers)
    start = ", ".join(f"{number:.2f}" for number in islice(numbers, 2) if isinstance(number, int | float))
    return f"[{start}, … {len(numbers):,} numbers]"


def _innermost(value: Json) -> Json:
    while isinstance(value, list) and value:
        value = value[0]
    return value


def _shape(value: Json) -> str:
    sizes = []
    while isinstance(value, list) and value:
        sizes.append(str(len(value)))
        value = value[0]
    return " × ".join(sizes)
