"""Pairs, triplets, scored pairs and ranked documents: read by their columns, or refused before they are submitted."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import UsageError
from producer.finetune.options import FinetuneOptions
from producer.finetune.plan import FinetunePlan, make_finetune_plan

PAIR = {"anchor": "a", "positive": "b"}
PAIRS = [PAIR, {"anchor": "c", "positive": "d"}]
RANKED = ({"query": "a", "document": "b", "label": 1}, {"query": "a", "document": "c", "label": 0})
SCORED = [{"sentence1": "a", "sentence2": "b", "by": by, "fit": fit} for by, fit in ((3, 0.5), (1, 1))]


@pytest.fixture(autouse=True)
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGQUEUE_HOME", str(tmp_path / "home"))


def plan(path: Path, rows: Any, task: str = "embedding", **options: Any) -> FinetunePlan:
    path.write_text(
        rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    return make_finetune_plan([str(path)], FinetuneOptions.of(task=task, model="org/model", **options))


@pytest.mark.parametrize(
    ("rows", "options", "example", "kind"),
    [
        (PAIRS, {}, {"texts": ["a", "b"]}, "pairs"),
        ([{"question": q, "answer": a, "source": "x"} for q, a in ("ab", "cd")], {}, {"texts": ["a", "b"]}, "pairs"),
        ([{"q": q, "p": p} for q, p in ("ab", "cd")], {"text_column": "q,p"}, {"texts": ["a", "b"]}, "pairs"),
        ([{"q": "a", "p": "b", "x": "c", "y": "d"}], {"text_column": "q, p, x, y"}, {"texts": [*"abcd"]}, "triplets"),
        ([{**PAIR, "negative_2": "d", "negative_1": "c"}], {}, {"texts": [*"abcd"]}, "triplets"),
        (
            [{"sentence1": "a", "sentence2": "b", "label": n} for n in (1, 0)],
            {}, {"texts": ["a", "b"], "score": 1.0}, "scored_pairs",
        ),
        (
            [{"q": "나는", "p": "i", "fit": fit} for fit in (0.5, 1)],
            {"text_column": "q,p", "label_column": "fit"}, {"texts": ["나는", "i"], "score": 0.5}, "scored_pairs",
        ),
        (RANKED, {"task": "rerank"}, {"query": "a", "documents": ["b"], "labels": [1.0]}, "relevance"),
        (
            [{"query": "a", "documents": ["b", "c"], "labels": [0.2, 1]}],
            {"task": "rerank"}, {"query": "a", "documents": ["b", "c"], "labels": [0.2, 1.0]}, "graded_relevance",
        ),
    ],
)  # fmt: skip
def test_columns_say_what_is_learned(
    tmp_path: Path, rows: Any, options: dict[str, Any], example: dict[str, Any], kind: str
) -> None:
    found = plan(tmp_path / "rows.jsonl", rows, **options)
    assert found.examples.train[0] == example
    assert found.examples.labels and found.examples.labels.kind == kind


def test_lists_in_a_table_are_json(tmp_path: Path) -> None:
    rows = 'query,documents,labels\na,"[""b"", ""c""]","[true, 0]"\n'
    [example] = plan(tmp_path / "rows.csv", rows, "rerank").examples.train
    assert example == {"query": "a", "documents": ["b", "c"], "labels": [1.0, 0.0]}


def test_a_metric_that_the_evaluation_set_has_no_value_for_is_refused(tmp_path: Path) -> None:
    dev, rows = tmp_path / "dev.jsonl", tmp_path / "rows.jsonl"

    def refused(evaluation: list[dict[str, Any]], train: Any, task: str, **options: Any) -> str:
        dev.write_text("".join(json.dumps(row) + "\n" for row in evaluation))
        with pytest.raises(UsageError) as caught:
            plan(rows, train, task, evaluation=str(dev), **options)
        return str(caught.value)

    unranked = [{"query": label, "document": "b", "label": label} for label in (0, 1)]
    for name in ("ndcg@10", "eval_mrr@10", "map"):
        message = refused(unranked, RANKED, "rerank", metric_for_best=name)
        assert f"--metric-for-best {name}: not measured, because no query of the evaluation set has both" in message
        assert message.endswith("Leave it out, or try average_precision.")
    assert plan(rows, RANKED, "rerank", evaluation=str(dev), metric_for_best="f1")
    assert "no query of the evaluation set has two" in refused(unranked, RANKED, "rerank", loss="LambdaLoss")
    alike = [{"sentence1": one, "sentence2": "b", "score": 0.5} for one in "ac"]
    scored = [{**row, "score": score} for row, score in zip(alike, (0, 1), strict=True)]
    message = refused(alike, scored, "embedding", metric_for_best="pearson")
    assert message.endswith("all scores of the evaluation set are the same. Leave it out, or try loss.")
    numbers = [{"text": str(score), "label": score} for score in (0.5, 1.5)]
    assert "has a single example" in refused(numbers[:1], numbers, "text-classification", metric_for_best="r2")


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ("text\none\n", {}, "needs anchor + positive or"),
        ([{"anchor": "a"}], {}, "Fix or remove it, or read other columns. Select them with --text-column"),
        ([PAIR, {"anchor": "a"}], {}, "the record has: anchor. Fix or remove it"),
        ([{"query": "a", "document": "b"}], {"task": "rerank"}, "query + document + label"),
        ([{"q": "a"}], {"text_column": "q"}, "learns from two or more columns, separated by commas"),
        ([{"q": "a"}], {"text_column": "q,,p"}, "learns from two or more columns"),
        ([{"q": "a"}], {"text_column": "q,p,x", "task": "rerank"}, "learns from two columns"),
        ([{"q": "a", "p": "b"}], {"text_column": "q,x"}, "needs q + x"),
        ([{**PAIR, "negative": "c"}, PAIR], {}, "row 2: it has 'anchor', 'positive', the first row has"),
        ([{"sentence1": "a", "sentence2": "b", "score": "high"}], {}, "'score' must hold numbers, found \"high\""),
        ([{"sentence1": "a", "sentence2": "b", "score": None}], {}, "the record has: sentence1, sentence2"),
        ([{"sentence1": "a", "sentence2": "b", "score": 1}] * 2, {}, "Every example has the score 1"),
        ([{"query": "a", "documents": ["b"], "labels": [1, 0]}], {"task": "rerank"}, "1 documents, but 2 labels"),
        ([{"query": "a", "documents": ["b"], "labels": 1}], {"task": "rerank"}, "must both be lists"),
        ("anchor,positive,negative\na,b,c\nd,e,\n", {}, "row 2: it has 'anchor', 'positive', the first row has"),
        ([{**RANKED[0], "label": 4}, RANKED[1]], {"task": "rerank"}, "found 4 with the text 'a'. Scale them, or try"),
        ([{**RANKED[0], "label": -1}, RANKED[1]], {"task": "rerank", "loss": "LambdaLoss"}, "of 0 and above, found -1"),
        ([{**RANKED[0], "label": -1}, RANKED[1]], {"task": "rerank"}, "found -1 with the text 'a'. Scale them."),
        ([{**RANKED[0], "query": q, "label": q} for q in "01"], {"task": "rerank", "loss": "LambdaLoss"}, "has two"),
        ([PAIR], {"loss": "MultipleNegativeRankingLoss"}, "Did you mean MultipleNegativesRankingLoss"),
        ([PAIR], {"loss": "cosent"}, "Did you mean CoSENTLoss?"),
        ([PAIR], {"loss": "CoSENTLoss"}, "here are pairs of texts that belong together"),
        ([{**PAIR, "negative": "c", "negative_1": "d"}], {"loss": "TripletLoss"}, "takes one negative"),
        (SCORED, {"label_column": "by", "loss": "CosineSimilarityLoss"}, "from -1 to 1, found 3"),
        (SCORED, {"label_column": "fit", "loss": "ContrastiveLoss"}, "scores 0 and 1, found 0.5"),
        ([PAIR], {"matryoshka_dims": [64, 64]}, "name each dimension once"),
        ([PAIR], {"matryoshka_dims": [64, 0]}, "--matryoshka-dims[1]: expected a whole number >= 1"),
        (RANKED, {"matryoshka_dims": [64], "task": "rerank"}, "rerank has no vectors"),
        ([PAIR], {"template": "{anchor}"}, "--template makes a text, and embedding learns several texts"),
        ([PAIR], {"params": ["prompts=x"]}, "those of the base model are used"),
        ([PAIR, {**PAIR, "anchor": "c"}], {"metric_for_best": "ndcg@1", "eval_split": 0.5}, "Did you mean ndcg@10"),
        ([PAIR], {"task": "text-classification", "loss": "CoSENTLoss"}, "--loss is for embedding and rerank"),
        ([{**PAIR, "positive": str(n)} for n in range(4)], {"eval_split": 0.5}, "all have the same first text"),
        ([PAIR], {"eval_split": 0.5}, "leaves no example to evaluate with: there is only one."),
        ([PAIR], {}, "takes the other texts of a batch as negatives, and there are none"),
        ([PAIR, {**PAIR, "positive": "c"}], {}, "two examples that share no text"),
        ([PAIR, {**PAIR, "anchor": "c"}], {}, "two examples that share no text"),
        (PAIRS, {"batch_size": 1}, "a --batch-size of at least 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_from_is_refused(tmp_path: Path, rows: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan(tmp_path / ("rows.csv" if isinstance(rows, str) else "rows.jsonl"), rows, **options)
    assert words in str(caught.value)


def test_rows_that_lack_a_text_are_left_out_and_counted(tmp_path: Path) -> None:
    found = plan(tmp_path / "rows.jsonl", [*PAIRS, {**PAIR, "positive": " "}]).examples
    assert (len(found.train), found.notes[0]) == (2, "1 example without text: left out.")


def test_an_evaluation_set_of_another_kind_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "dev.jsonl"
    other.write_text(json.dumps({"sentence1": "a", "sentence2": "b", "score": 1}) + "\n")
    with pytest.raises(UsageError, match=r"dev.jsonl: the training set has pairs .* found pairs of texts with a score"):
        plan(tmp_path / "rows.jsonl", [PAIR], evaluation=str(other))


def test_no_text_is_both_learned_and_held_out(tmp_path: Path) -> None:
    rows = [{"query": f"q{n % 10}", "document": f"d{n}", "label": n % 2} for n in range(60)]
    found = plan(tmp_path / "rows.jsonl", rows, "rerank", eval_split=0.3).examples
    parts = [{example["query"] for example in part} for part in (found.train, found.evaluation)]
    assert (len(parts[0]), len(parts[1])) == (7, 3) and not parts[0] & parts[1]
