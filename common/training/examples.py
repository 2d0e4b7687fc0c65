"""Training examples: which columns hold text and label, and how their cells are read.

The producer applies it to files before it submits anything, the worker to datasets on the Hub. Both hold all examples
in memory, since training passes over them several times.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from common.errors import UsageError
from common.records import Json
from common.template import TEMPLATE_FIELD
from common.training.cells import list_of, text_of
from common.training.conversations import (
    CHOSEN,
    REJECTED,
    TOOLS,
    has_empty_part,
    has_no_answer,
    make_chat,
    make_preference,
)
from common.training.kinds import PAIR_TASKS
from common.training.text_pairs import choose_pair_columns, has_empty_text, make_pair_example


@dataclass(frozen=True, slots=True)
class ExampleSchema:
    """The columns of an example: alternatives for each, in order of preference."""

    text: tuple[str, ...]
    label: tuple[str, ...] = ()

    def columns(self, names: Sequence[str], text: str | None, label: str | None) -> tuple[str, str | None] | None:
        """Return the columns of text and label among `names`, chosen or by default; None if one is missing."""
        found_text = _first((text,) if text else self.text, names)
        found_label = _first((label,) if label else self.label, names)
        if found_text is None or (self.label and found_label is None):
            return None
        return found_text, found_label


_TEXT = ExampleSchema(("text", "sentence"))
SCHEMAS: dict[str, ExampleSchema] = {
    "text-classification": ExampleSchema(("text", "sentence", "review"), ("label", "labels")),
    "token-classification": ExampleSchema(("tokens", "words"), ("tags", "ner_tags", "labels")),
    "fill-mask": _TEXT,
    "text-generation": _TEXT,
}
#: Columns that examples of a task have besides, if they are there.
OPTIONAL: Mapping[str, tuple[str, ...]] = {
    "text-classification": ("text_pair",),
    "text-generation": ("prompt", TOOLS),
}
#: A cell that is a number; 007 and 1_0 are words.
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(?P<fraction>(\.[0-9]+)?([eE][+-]?[0-9]+)?)\Z")
#: The other schemas of text-generation: prefer one answer to another, learn the assistant's words of a chat, learn the
#: completion of a prompt.
PREFERENCE = ExampleSchema((CHOSEN,), (REJECTED,))
CHAT = ExampleSchema(("messages",))
PROMPT_COMPLETION = ExampleSchema(("prompt",), ("completion", "response", "answer"))


def schemas_of(
    task: str, text: str | None = None, label: str | None = None, *, templated: bool = False
) -> tuple[ExampleSchema, ...]:
    """Return the schemas that examples of a task may have, the preferred one first.

    Args:
        task: a task that can be fine-tuned.
        text: the chosen column of texts.
        label: the chosen column of labels.
        templated: whether a template makes the text; it is then a prompt only if a column of completions is chosen.
    """
    if task != "text-generation":
        return (SCHEMAS[task],)
    if templated:
        return (PROMPT_COMPLETION,) if label else (SCHEMAS[task],)
    if text or label:
        return PROMPT_COMPLETION, SCHEMAS[task]
    return PREFERENCE, CHAT, PROMPT_COMPLETION, SCHEMAS[task]


def choose_columns(
    task: str, names: Sequence[str], text: str | None, label: str | None, *, templated: bool = False
) -> tuple[str, str | None]:
    """Return the columns of text (several, separated by commas, for a task of pairs) and label among `names`.

    Args:
        task: a task that can be fine-tuned.
        names: the columns there are.
        text: the chosen column of texts; None: by its name.
        label: the chosen column of labels; None: by its name.
        templated: whether a template makes the text.

    Raises:
        UsageError: They are missing.
    """
    if task in PAIR_TASKS:
        return choose_pair_columns(task, names, text, label)
    if templated:
        names, text = [*names, TEMPLATE_FIELD], TEMPLATE_FIELD
    for schema in schemas_of(task, text, label, templated=templated):
        if (found := schema.columns(names, text, label)) is not None:
            return found
    schema = SCHEMAS[task]
    wanted = f"{text or schema.text[0]!r}" + (f" and {label or schema.label[0]!r}" if schema.label or label else "")
    options = "--text-column and --label-column" if schema.label or label else "--text-column"
    raise UsageError(
        f"{task} needs the columns {wanted}; found: {', '.join(names) or 'none'}. Select them with {options}."
    )


def make_example(task: str, row: Mapping[str, Json], text: str, label: str | None) -> dict[str, Json]:
    """Return a row as an example with the task's field names.

    Raises:
        UsageError: A field has the wrong type.
    """
    if task in PAIR_TASKS:
        return make_pair_example(task, row, text, label)
    if task == "token-classification":
        return _tagged(row[text], row[label or "tags"])
    if task == "text-generation":
        return _generation_example(row, text, label)
    example = {"text": text_of(row[text], text)}
    if task == "text-classification":
        example["label"] = _label(row[label or "label"])
        if isinstance(row.get("text_pair"), str):
            example["text_pair"] = row["text_pair"]
    return example


def _generation_example(row: Mapping[str, Json], text: str, label: str | None) -> dict[str, Json]:
    if (text, label) == (CHOSEN, REJECTED):
        return make_preference(row)
    if label is not None:
        return {"prompt": text_of(row[text], text), "completion": text_of(row[label], label)}
    if text in CHAT.text or isinstance(row[text], list):
        return make_chat(row, text)
    return {"text": text_of(row[text], text)}


def is_empty(example: Mapping[str, Json]) -> bool:
    """Whether an example has no text to learn, or lacks one of several."""
    if "messages" in example:
        return has_no_answer(example["messages"])
    if CHOSEN in example:
        return has_empty_part(example)
    if "texts" in example or "query" in example:
        return has_empty_text(example)
    text = example.get("text", example.get("tokens", example.get("completion")))
    return not text or (isinstance(text, str) and not text.strip())


def _first(wanted: Iterable[str], names: Sequence[str]) -> str | None:
    return next((name for name in wanted if name in names), None)


def _label(value: Json) -> Json:
    """Return a label as a number, a word, or a list of them."""
    if isinstance(value, list):
        return [_class(item) for item in value]
    if isinstance(value, bool | int | float) and (isinstance(value, bool) or math.isfinite(value)):
        return str(value).lower() if isinstance(value, bool) else value
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"a label must be a word, a number or a list of words, found {json.dumps(value)[:80]}")
    return _parsed(value.strip())


def _class(item: Json) -> Json:
    """Return an item of a list of labels: a name, or a whole number."""
    if isinstance(item, str):
        return item.strip()
    if isinstance(item, bool | int) or (isinstance(item, float) and item.is_integer()):
        return item
    raise UsageError(f"a list of labels holds names, or a 0 or 1 for each class; found {json.dumps(item)[:80]}")


def _parsed(text: str) -> Json:
    """Return the value of a table's cell: 1 and 0.5 are numbers, ["a", "b"] is a list."""
    if text.startswith("["):
        return _label(_json_list(text))
    match = _NUMBER.match(text)
    if match is None or not math.isfinite(number := float(text)):
        return text
    return number if match["fraction"] else int(text)


def _json_list(text: str) -> list[Json]:
    value = list_of(text)
    if not isinstance(value, list):
        raise UsageError(f"expected a JSON list, found {text[:80]!r}")
    return value


def _tagged(words: Json, tags: Json) -> dict[str, Json]:
    """Return words and tags; in a table, both are JSON lists or separated by spaces."""
    found = [_words(value) for value in (words, tags)]
    if len(found[0]) != len(found[1]):
        raise UsageError(f"{len(found[0])} words, but {len(found[1])} tags: each word needs one")
    return {"tokens": found[0], "tags": found[1]}


def _words(value: Json) -> list[str]:
    if isinstance(value, str):
        value = _json_list(value) if value.lstrip().startswith("[") else value.split()
    if not isinstance(value, list):
        raise UsageError(f"expected a list of words, found {json.dumps(value)[:80]}")
    return [str(item) for item in value]
