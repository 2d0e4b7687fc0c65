"""The page about a fine-tune job: complete, self-contained, and safe against what names and labels hold."""

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from common.errors import UsageError
from common.jobs import Job, JobSpec, JobStatus
from producer.finetune.report import render, write_page
from producer.finetune.svg_charts import Series, line_chart, shaded_table

RESULT: dict[str, Any] = {
    "base_model": "org/<base>", "task": "text-classification", "steps": 40, "epochs": 2.0, "seconds": 75.0,
    "device": "a CPU", "best_step": 40, "examples": {"train": 320, "eval": 80}, "notes": ["A new head was made <b>."],
    "metrics": {"accuracy": 0.91234, "f1_macro": 0.9}, "labels": {"names": ["<script>", "good & bad"]},
    "curve": [[n, 1 / (n + 1), 5e-5 * (40 - n) / 40] for n in range(0, 40, 4)],
    "evaluations": [
        {"step": 20, "epoch": 1.0, "loss": 0.5, "accuracy": 0.8},
        {"step": 40, "epoch": 2.0, "loss": 0.4, "accuracy": 0.9},
    ],
    "confusion": [[38, 2], [5, 35]], "options": {"epochs": 2.0, "max_length": None},
    "arguments": {"weight_decay": 0.01},
    "versions": {"torch": "2.13.0"}, "finished_at": 1795874400.0, "inputs": ["rev<iews>.csv"],
    "classes": [
        {"name": "<script>", "precision": 0.88372, "recall": 0.95, "f1": 0.91566, "support": 40},
        {"name": "good & bad", "precision": 0.94595, "recall": 0.875, "f1": 0.90909, "support": 40},
    ],
    "worst": [{"text": "no <i>joke</i>", "label": "<script>", "predicted": "good & bad", "loss": 4.2}],
}  # fmt: skip


@pytest.fixture
def page() -> str:
    spec = JobSpec("0123456789ab", "text-classification", name="my <job>", training={})
    return render(Job(spec, JobStatus.COMPLETED), RESULT)


class Balance(HTMLParser):
    """Raises where tags are not closed in turn."""

    VOID = frozenset({"meta", "rect", "line", "circle", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_shows_curves_metrics_labels_arguments_and_versions(page: str) -> None:
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    text = " ".join(parser.text)
    for words in ("my <job>", "0.9123", "320 examples", "1m 15s", "Learning rate", "good & bad", "2.13.0"):
        assert words in text, words
    assert page.count("<svg") == 3


def test_the_page_shows_each_class_the_worst_examples_and_the_data(page: str) -> None:
    parser = Balance()
    parser.feed(page)
    text = " ".join(parser.text)
    for words in ("0.8837", "0.95", "no <i>joke</i>", "rev<iews>.csv", "320 examples", "2026-11-2"):
        assert words in text, words
    assert "<i>" not in page


def test_the_page_says_how_to_use_the_model(page: str) -> None:
    assert "producer submit --task text-classification --model job:0123456789ab FILE" in page
    assert "producer models export job:0123456789ab DIRECTORY" in page


def test_the_page_is_for_phones_and_dark_screens_too(page: str) -> None:
    assert '<meta name="viewport" content="width=device-width' in page
    assert "prefers-color-scheme: dark" in page
    svg = "".join(re.findall(r"<svg.*?</svg>", page))
    assert not re.search(r'"#(222|666|e5e5e5)"', svg), "text and lines are in the page's ink"


def test_an_older_result_without_classes_makes_a_page(page: str) -> None:
    older = {name: value for name, value in RESULT.items() if name not in ("classes", "worst", "inputs")}
    spec = JobSpec("0123456789ab", "text-classification", training={})
    assert "Which label was taken" in render(Job(spec, JobStatus.COMPLETED), older)


def test_the_page_says_which_evaluation_is_that_of_the_model(page: str) -> None:
    assert "The model is that of step 40." in page
    [best] = re.findall(r"<tr class=best>(.*?)</tr>", page)
    assert "0.9" in best


def test_the_page_needs_nothing_from_elsewhere(page: str) -> None:
    assert not re.search(r"<script|<link|src=|href=|url\(|https?:", page)


def test_a_curve_has_its_points_inside_the_picture() -> None:
    svg = ElementTree.fromstring(line_chart([Series("a", [(0, 3.0), (50, None), (100, 1.0)]), Series("b", [(0, 2.0)])]))
    width, height = (float(n) for n in svg.attrib["viewBox"].split()[2:])
    for line in svg.iter("polyline"):
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= width and 0 <= y <= height
    first = next(svg.iter("polyline")).attrib["points"].split()
    assert len(first) == 2
    assert float(first[0].split(",")[1]) < float(first[1].split(",")[1])  # a higher loss stands higher


def test_the_names_of_many_curves_are_inside_the_picture_and_above_them() -> None:
    names = ["accuracy", "f1_macro", "precision", "recall", "a name of many words, " * 2, "short", "another name"]
    svg = ElementTree.fromstring(line_chart([Series(name, [(0, 1.0), (9, 2.0)]) for name in names]))
    width, lowest = float(svg.attrib["viewBox"].split()[2]), 0.0
    positions = {text.text: (float(text.attrib["x"]), float(text.attrib["y"])) for text in svg.iter("text")}
    for name in names:
        x, y = positions[name]
        assert x + 6.5 * len(name) <= width
        lowest = max(lowest, y)
    assert len({positions[name] for name in names}) == len(names)
    heights = [float(point.split(",")[1]) for line in svg.iter("polyline") for point in line.attrib["points"].split()]
    assert min(heights) > lowest


@pytest.mark.parametrize("points", [[(0.0, 5.0)], [(0, 1.0), (1, 1.0)], [(0, 0.0), (0, 0.0)]])
def test_a_flat_or_lonely_curve_is_drawn(points: list[tuple[float, float]]) -> None:
    ElementTree.fromstring(line_chart([Series("a", points)]))


def test_there_is_no_half_a_step_on_the_axis() -> None:
    svg = ElementTree.fromstring(line_chart([Series("a", [(1, 0.5), (2, 0.1)])]))
    assert [text.text for text in svg.iter("text") if text.text in ("1", "1.2", "1.5", "2")] == ["1", "2"]


def test_a_curve_without_points_is_left_out() -> None:
    assert line_chart([Series("a", [(0, None), (1, float("nan"))])]) == ""


def test_each_row_of_the_table_is_shaded_by_its_shares() -> None:
    table = shaded_table(["a", "b"], [[3, 1], [0, 0]])
    assert "0.75)" in table and "0.25)" in table and table.count("0.00)") == 2


def test_a_page_that_cannot_be_written_is_a_usage_error(tmp_path: Path, page: str) -> None:
    with pytest.raises(UsageError, match="There is no directory"):
        write_page(tmp_path / "nowhere" / "page.html", page)
    write_page(tmp_path / "page.html", page)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
