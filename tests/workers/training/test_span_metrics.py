"""Entities among tags, and their scores, against values that seqeval 1.2.2 gave."""

import pytest

from workers.training.trainer.metrics import SpanMetrics, find_spans, score_spans


@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        ("O O O", []),
        ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("B-PER B-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("B-PER I-LOC I-LOC", [("PER", 0, 1), ("LOC", 1, 3)]),
        ("O I-LOC I-LOC O", [("LOC", 1, 3)]),
        ("S-LOC B-PER E-PER E-PER", [("LOC", 0, 1), ("PER", 1, 3), ("PER", 3, 4)]),
        ("B-A-B I-A-B", [("A-B", 0, 2)]),
    ],
)
def test_tags_mark_entities(tags: str, entities: list[tuple[str, int, int]]) -> None:
    assert find_spans(tags.split()) == entities


def test_other_spellings_of_the_same_tags_mark_the_same() -> None:
    spelled = ["B-PER", "I-PER", "E-PER", "S-LOC", "O"]
    assert find_spans(spelled) == find_spans([tag.replace("E-", "L-").replace("S-", "U-") for tag in spelled])


def test_an_entity_counts_as_a_whole() -> None:
    expected = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    predicted = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    found = score_spans(expected, predicted)  # the example of seqeval's own documentation
    assert found[""] == SpanMetrics(0.5, 0.5, 0.5, 2)
    assert found["MISC"] == SpanMetrics(0.0, 0.0, 0.0, 1)
    assert found["PER"] == SpanMetrics(1.0, 1.0, 1.0, 1)


def test_scores_of_more_and_fewer_entities_than_there_are() -> None:
    expected = [["B-A", "I-A", "B-B", "O", "S-A"], ["O", "O"]]
    predicted = [["B-A", "I-A", "O", "O", "O"], ["B-B", "O"]]
    found = score_spans(expected, predicted)
    assert found[""] == SpanMetrics(0.5, pytest.approx(1 / 3), pytest.approx(0.4), 3)
    assert found["A"] == SpanMetrics(1.0, 0.5, pytest.approx(2 / 3), 2)
    assert score_spans([["O"]], [["O"]]) == {"": SpanMetrics(0.0, 0.0, 0.0, 0)}
