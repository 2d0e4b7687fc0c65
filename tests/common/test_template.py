"""Templates: what `str.format` gives for names, and nothing of what else it would do."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import RecordError
from common.jobs import JobSpec
from common.template import MAX_LENGTH, MAX_RENDERED, Template

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = st.from_regex(r"[a-z_]{1,5}", fullmatch=True)


@given(
    literals=st.lists(TEXTS, min_size=2, max_size=6), cells=st.dictionaries(NAMES, TEXTS, min_size=1), data=st.data()
)
def test_a_template_gives_what_str_format_gives(
    literals: list[str], cells: dict[str, str], data: st.DataObject
) -> None:
    text = literals[0].replace("{", "{{").replace("}", "}}")
    for literal in literals[1:]:
        name = data.draw(st.sampled_from(sorted(cells)))
        text += f"{{{name}}}" + literal.replace("{", "{{").replace("}", "}}")
    assert Template.parse(text).render(cells) == text.format(**cells)


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("Classify: {review text}\n{b}", "Classify: good\n2"),
        ('{{"text": "{b}"}}', '{"text": "2"}'),
        ("{{{b}}}", "{2}"),
        ("{b}{b}", "22"),
        ("{ü.x[0]!r:>9}", "odd"),
        ("{ b}", "spaced"),
    ],
)
def test_names_are_taken_as_they_are(text: str, rendered: str) -> None:
    row = {"review text": "good", "b": 2, "ü.x[0]!r:>9": "odd", " b": "spaced"}
    assert Template.parse(text).render(row) == rendered


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        ("", ""),
        (float("nan"), ""),
        (7, "7"),
        (1.0, "1.0"),
        (True, "true"),
        (["a", 1], '["a", 1]'),
        ({"ä": None}, '{"ä": null}'),
    ],
)
def test_null_is_nothing_and_what_is_no_text_is_as_in_json(value: object, text: str) -> None:
    assert Template.parse("[{a}]").render({"a": value}) == f"[{text}]"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no column"),
        ("Summarize this.", "names no column"),
        ("{{title}}", "names no column"),
        ("a {title", "the { at line 1, character 3 is never closed. Write {{ for a brace"),
        ("{title}\nand } so on", "the } at line 2, character 5 closes nothing. Write }} for a brace"),
        ("{a{b}}", "the { at line 1, character 1 is never closed"),
        ("{a} {}", "the braces at line 1, character 5 hold no column's name"),
        ("{ }", "hold no column's name"),
        ("{a}\n\udcff", "not UTF-8 at line 2, character 1"),
        ("{a}" + "x" * MAX_LENGTH, "it has 65,539 characters; at most 65,536"),
    ],
)
def test_a_broken_template_is_refused_with_the_position(text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        Template.parse(text)
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["{a.__class__}", "{a[0]}", "{a!r}", "{a:>1000000000}", "{0}"])
def test_attributes_indexes_and_formats_are_names_of_no_column(text: str) -> None:
    with pytest.raises(RecordError, match=r"no field .* the record has: a, b") as caught:
        Template.parse(text).render({"b": 1, "a": "x"})
    assert caught.value.code == "missing_field"


def test_a_column_that_is_named_too_often_takes_no_memory() -> None:
    template = Template.parse("{a}" * 20_000)
    with pytest.raises(RecordError, match="longer than 16,777,216 characters") as caught:
        template.render({"a": "x" * MAX_RENDERED})
    assert caught.value.code == "too_large"


@pytest.mark.parametrize("template", ["{a", "no name", 5, "x" * 10**6, ["{a}"]])
def test_a_forged_template_of_a_job_is_refused(template: object) -> None:
    spec = JobSpec("0123456789ab", "fill-mask", template="{a}")
    assert JobSpec.decode(spec.encode()) == spec
    with pytest.raises(ValueError, match="template"):
        JobSpec.decode(json.dumps(json.loads(spec.encode()) | {"template": template}))
