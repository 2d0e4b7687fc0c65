"""Short previews of results for the table on a terminal, derived from the shape of an output."""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby, islice

from common.json_codec import to_json
from common.records import Json
from common.results import ResultRow

#: Characters of a cell; the table wraps or cuts what is still too long for the terminal.
WIDTH = 120

_MAX_ITEMS = 3  # of ranked answers
# Escape sequences must not reach the terminal; lone surrogates cannot be encoded.
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
#: Keys with the word, label or text that an object is about, in order of preference.
_NAME_KEYS = ("token_str", "word", "label", "answer", "content", "text", "messages")


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
        return value[-1]["content"]  # a chat: its last message
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
        if "role" in first:
            return _short(_input(value))
        return " | ".join(_objects(list(items)) for _, items in groupby(value, _mask_number))
    if isinstance(first, list):
        shape, innermost = _shape(value)
        if isinstance(innermost, int | float):
            return f"{shape} numbers"
        return " | ".join(_output(item) for item in value)
    if isinstance(first, int | float):
        return _vector(value)
    return ", ".join(_short(item) for item in islice(value, _MAX_ITEMS))


def _objects(items: Sequence[Mapping[str, Json]]) -> str:
    return " · ".join(map(_object, items[:_MAX_ITEMS])) + (" · …" if len(items) > _MAX_ITEMS else "")


def _mask_number(item: Mapping[str, Json]) -> Json:
    """Return which of several masks in a text a word is for."""
    number = item.get("mask")
    return number if isinstance(number, int) else None


def _object(value: Mapping[str, Json]) -> str:
    if isinstance(value.get("vector"), list):
        return f"{value.get('start')} to {value.get('end')}: {_vector(value['vector'])}"
    if isinstance(value.get("labels"), list) and isinstance(value.get("scores"), list):
        pairs = islice(zip(value["labels"], value["scores"], strict=False), _MAX_ITEMS)
        return " · ".join(f"{label}{_score(score)}" for label, score in pairs)
    name = next((_short(_input(value[key])) for key in _NAME_KEYS if value.get(key) is not None), None)
    if name is None:
        return "a depth map" if isinstance(value.get("depth"), bytes | str) else _short(value)
    label = value.get("entity_group", value.get("entity")) or ""
    return f"{name}{' ' if label else ''}{label}{_score(value.get('score'))}"


def _score(score: Json) -> str:
    return f" {score:.3f}" if isinstance(score, float) else ""


def _vector(numbers: list[Json]) -> str:
    if len(numbers) <= _MAX_ITEMS:
        return to_json(numbers)
    start = ", ".join(
        f"{number:.2f}" if isinstance(number, float) else str(number)
        for number in islice(numbers, 2)
        if isinstance(number, int | float)
    )
    return f"[{start}, … {len(numbers):,} numbers]"


def _shape(value: Json) -> tuple[str, Json]:
    """Return the lengths of nested lists, such as `2 × 768`, and the first of the innermost values."""
    sizes = []
    while isinstance(value, list) and value:
        sizes.append(str(len(value)))
        value = value[0]
    return " × ".join(sizes), value
