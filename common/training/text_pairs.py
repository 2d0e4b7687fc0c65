"""Examples of several texts, for `embedding` and `rerank`: pairs, triplets, scored pairs, a query with its documents.

An example of `embedding` has `texts` (what is looked for, what fits it, and perhaps others that do not) and perhaps a
`score`; one of `rerank` has a `query` with `documents` and a label for each of these. The producer applies this to
files before it submits anything, the worker to datasets on the Hub.
"""

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence

from common.errors import UsageError
from common.records import Json
from common.training.cells import list_of, text_of
from common.training.kinds import Example

#: Between the columns of `--text-column`.
SEPARATOR = ","
#: Texts that do not fit the first, as sentence-transformers names them where it mines several.
NEGATIVES = ("negative", *(f"negative_{number}" for number in range(1, 65)))
_SCORES, _LABELS = ("score", "label"), ("label", "score")
#: Names of two columns of texts, for `embedding` without and with a score, and for `rerank`.
_PAIRS = (
    ("anchor", "positive"),
    ("query", "positive"),
    ("query", "document"),
    ("query", "answer"),
    ("question", "answer"),
)
_SCORED = (("sentence1", "sentence2"),)
_DOCUMENTS, _LISTS = (("query", "document"),), (("query", "documents"),)

Columns = tuple[str, str | None]


def pair_fields(task: str, text: str | None, label: str | None) -> tuple[tuple[str, ...], ...]:
    """Return the sets of columns that examples of a task may have, the preferred one first.

    Args:
        task: one of `PAIR_TASKS` of `common.training.kinds`.
        text: the chosen columns of texts; None: by their names.
        label: the chosen column of scores or labels; None: by its name.

    Raises:
        UsageError: Too few columns were chosen, or too many.
    """
    if text is not None:
        chosen = (_split(task, text, scored=label is not None),)
        return chosen if task == "embedding" and label is None else _with_labels(chosen, label, _LABELS)
    if task == "rerank":
        return _with_labels(_DOCUMENTS, label, _LABELS) + _with_labels(_LISTS, label, ("labels",))
    if label is not None:
        return _with_labels((*_SCORED, *_PAIRS), label, _SCORES)
    return _PAIRS + _with_labels(_SCORED, None, _SCORES)


def _with_labels(
    texts: Sequence[tuple[str, ...]], label: str | None, labels: Sequence[str]
) -> tuple[tuple[str, ...], ...]:
    return tuple((*columns, name) for columns in texts for name in ((label,) if label else labels))


def choose_pair_columns(task: str, names: Sequence[str], text: str | None, label: str | None) -> Columns:
    """Return the columns of the texts, as `--text-column` names them, and that of the score or label.

    Args:
        task: one of `PAIR_TASKS` of `common.training.kinds`.
        names: the columns there are.
        text: the chosen columns of texts; None: by their names.
        label: the chosen column of scores or labels; None: by its name.

    Raises:
        UsageError: They are missing.
    """
    fields = pair_fields(task, text, label)
    found = next((columns for columns in fields if set(columns) <= set(names)), None)
    if found is None:
        wanted = " or ".join(" + ".join(columns) for columns in fields)
        raise UsageError(f"{task} needs the columns {wanted}; found: {', '.join(names) or 'none'}. {column_hint(task)}")
    if task == "rerank" or label is not None or (text is None and found[-1] in _SCORES):
        return SEPARATOR.join(found[:-1]), found[-1]
    negatives = () if text else tuple(name for name in NEGATIVES if name in names)
    return SEPARATOR.join((*found, *negatives)), None


def column_hint(task: str) -> str:
    """Return how to choose other columns."""
    example = "query,document --label-column label" if task == "rerank" else "anchor,positive"
    return f"Select them with --text-column and --label-column, such as --text-column {example}."


def make_pair_example(task: str, row: Mapping[str, Json], text: str, label: str | None) -> dict[str, Json]:
    """Return a row as an example.

    Args:
        task: one of `PAIR_TASKS` of `common.training.kinds`.
        row: has the columns.
        text: the columns of texts, as `choose_pair_columns` returns them.
        label: the column of the score or label.

    Raises:
        UsageError: A field has the wrong type.
    """
    columns = text.split(SEPARATOR)
    if task == "rerank":
        return _ranked(row, columns, label or _LABELS[0])
    example: dict[str, Json] = {"texts": [text_of(row[name], name) for name in columns]}
    if label is not None:
        example["score"] = _number(row[label], label)
    return example


def has_empty_text(example: Example) -> bool:
    """Whether a text of an example is blank."""
    texts = example["texts"] if "texts" in example else [example["query"], *example["documents"]]
    return not all(text.strip() for text in texts) or len(texts) < 2


def check_same_columns(examples: Sequence[Example]) -> None:
    """Check that all examples of several texts have the same number of them.

    Raises:
        UsageError: They have not.
    """
    counts = {len(example["texts"]) for example in examples if "texts" in example}
    if len(counts) > 1:
        raise UsageError(f"Some examples have {min(counts)} texts and others {max(counts)}: give all the same columns.")


def check_scores_differ(examples: Sequence[Example]) -> None:
    """Check that there is something to learn of the scores of a training set, if it has any.

    Raises:
        UsageError: All are the same.
    """
    scores = set(scores_of(examples))
    if len(scores) == 1:
        raise UsageError(f"Every example has the score {scores.pop():g}: there is nothing to learn.")


def scores_of(examples: Sequence[Example]) -> Iterator[float]:
    """Yield the scores, or labels, of all examples."""
    for example in examples:
        if "labels" in example:
            yield from example["labels"]
        elif "score" in example:
            yield example["score"]


def first_text(example: Example) -> str:
    """Return the query of an example, or what is looked for."""
    text: str = example["query"] if "query" in example else example["texts"][0]
    return text


def ranked_queries(examples: Sequence[Example]) -> dict[str, tuple[list[str], list[float]]]:
    """Return for each query its documents and their labels, of all examples with that query."""
    found: dict[str, tuple[list[str], list[float]]] = {}
    for example in examples:
        documents, labels = found.setdefault(example["query"], ([], []))
        documents += example["documents"]
        labels += example["labels"]
    return found


def has_both_labels(labels: Sequence[float]) -> bool:
    """Whether some documents of a query fit and some do not, so that they can be ranked."""
    return any(labels) and not all(labels)


def choose_held_out(examples: Sequence[Example], share: float, seed: int) -> set[int]:
    """Return the numbers of the examples to evaluate with: of a query, or of a first text, all examples or none."""
    groups: dict[str, list[int]] = {}
    for number, example in enumerate(examples):
        groups.setdefault(first_text(example), []).append(number)
    keys = list(groups)
    count = min(len(keys) - 1, max(1, round(share * len(keys))))
    chosen = random.Random(seed).sample(keys, count)  # noqa: S311 - not a secret
    return {number for key in chosen for number in groups[key]}


def _split(task: str, text: str, *, scored: bool) -> tuple[str, ...]:
    columns = tuple(name.strip() for name in text.split(SEPARATOR))
    two = task == "rerank" or scored
    if len(columns) < 2 or not all(columns) or (two and len(columns) > 2):
        count = "two columns" if two else "two or more columns"
        raise UsageError(f"--text-column {text}: {task} learns from {count}, separated by commas. {column_hint(task)}")
    return columns


def _ranked(row: Mapping[str, Json], columns: Sequence[str], label: str) -> dict[str, Json]:
    query, name = text_of(row[columns[0]], columns[0]), columns[1]
    documents, labels = list_of(row[name]), list_of(row[label])
    if isinstance(documents, list) != isinstance(labels, list):
        raise UsageError(f"{name!r} and {label!r} must both be lists, or both be single values")
    if not isinstance(documents, list):
        documents, labels = [documents], [labels]
    if len(documents) != len(labels):
        raise UsageError(f"{len(documents)} documents, but {len(labels)} labels: each document needs one")
    return {
        "query": query,
        "documents": [text_of(document, name) for document in documents],
        "labels": [_number(one, label) for one in labels],
    }


def _number(value: Json, column: str) -> float:
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.strip().lower(), value)
    try:
        number = float(value) if isinstance(value, bool | int | float | str) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"the column {column!r} must hold numbers, found {json.dumps(value)[:80]}")
    return number
