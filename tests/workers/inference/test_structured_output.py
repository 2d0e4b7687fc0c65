"""Constrained text: every output meets its constraint, whatever is sampled, and an impossible constraint is refused."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import ModelError
from common.output_constraints import ConstrainedInput, Constraint
from common.records import Json, Outcome
from tests.support import tiny_models
from tests.support.pipeline_reference import run, runner_of
from tests.support.tiny_models import TEXTS, RecordingMonitor
from workers.inference.core.runner import Runner

PROMPTS = [text[:40] for text in TEXTS[:4]]
GREEDY = {"do_sample": False, "max_new_tokens": 200}
SAMPLED = {"do_sample": True, "max_new_tokens": 200}
REVIEW = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad, \"very\" bad"]}, "again": {"type": "boolean"}},
    "required": ["mood", "again"],
    "additionalProperties": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.causal_gpt2(tmp_path_factory.mktemp("gpt2"), positions=400)


@pytest.fixture(scope="module")
def runner(gpt2: Path) -> Runner:
    return runner_of("text-generation", gpt2)


def generate(runner: Runner, records: list[Json], **params: Any) -> list[Outcome]:
    return runner.run(records, params, RecordingMonitor())


def texts_of(outcomes: list[Outcome]) -> list[str]:
    assert [outcome.failure for outcome in outcomes] == [None] * len(outcomes)
    return [row["generated_text"] for outcome in outcomes for row in outcome.output]


@pytest.mark.parametrize(
    "params",
    [
        GREEDY,
        {**GREEDY, "chat": True},
        SAMPLED,
        {**SAMPLED, "seed": 5, "top_k": 5},
        {**SAMPLED, "num_return_sequences": 3, "top_p": 0.9, "temperature": 2.0},
        {**SAMPLED, "seed": 2, "num_return_sequences": 2, "repetition_penalty": 1.3},
        {**SAMPLED, "top_h": 0.4, "min_p": 0.3, "renormalize_logits": True},
    ],
)
def test_every_text_meets_the_constraint_of_the_job(runner: Runner, params: dict[str, Any]) -> None:
    count = len(PROMPTS) * params.get("num_return_sequences", 1)
    found = texts_of(generate(runner, PROMPTS, **params, json_schema=REVIEW))
    assert len(found) == count
    for text in found:
        jsonschema.validate(json.loads(text), REVIEW)
    found = texts_of(generate(runner, PROMPTS, **params, regex=r"[a-c]{2,5}-[0-9]{1,20}"))
    assert all(re.fullmatch(r"[a-c]{2,5}-[0-9]{1,20}", text) for text in found)
    choices = ["yes", "yes, (a) | b*", "nö\n"]
    assert set(texts_of(generate(runner, PROMPTS, **params, choices=choices))) <= set(choices)


_NAMES = st.text("ab é\"'", min_size=1, max_size=4)
_VALUES = st.one_of(st.none(), st.booleans(), st.integers(-99, 99), st.text('x"\\\n\u00e9\U0001f600', max_size=5))
_LEAVES = st.one_of(
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["null", "boolean"]}]),
    st.integers(-50, 50).map(lambda low: {"type": "integer", "minimum": low, "maximum": low + 60}),
    st.integers(0, 3).map(lambda low: {"type": "string", "minLength": low, "maxLength": low + 2}),
    st.lists(_VALUES, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    _VALUES.map(lambda value: {"const": value}),
    st.sampled_from([{"type": "string", "format": "date"}, {"type": "string", "pattern": "^[a-f]{1,4}$"}]),
)


def _object(properties: dict[str, Json], required: int) -> Json:
    names = list(properties)[:required]
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


_SCHEMAS = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.builds(_object, st.dictionaries(_NAMES, inner, max_size=3), st.integers(0, 3)),
        st.builds(lambda items, most: {"type": "array", "items": items, "maxItems": most}, inner, st.integers(0, 3)),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(schemas=st.lists(_SCHEMAS, min_size=4, max_size=4), seed=st.integers(0, 9))
def test_texts_of_any_schemas_in_one_batch_are_valid(runner: Runner, schemas: list[Json], seed: int) -> None:
    records = [
        ConstrainedInput(prompt, Constraint("json_schema", schema))
        for prompt, schema in zip(PROMPTS, schemas, strict=True)
    ]
    for outcome, schema in zip(generate(runner, records, **SAMPLED, seed=seed, usage=True), schemas, strict=True):
        assert outcome.failure is None
        [row] = outcome.output
        if row["finish_reason"] == "stop":
            jsonschema.validate(json.loads(row["generated_text"]), schema)


def test_records_with_different_constraints_and_none_share_a_batch(runner: Runner) -> None:
    constraints = [
        Constraint("json_schema", REVIEW),
        None,
        Constraint("choices", ["a", "b"]),
        Constraint("regex", "c+"),
    ]
    records = [
        ConstrainedInput(prompt, constraint) if constraint else prompt
        for prompt, constraint in zip(PROMPTS, constraints, strict=True)
    ]
    params = {"do_sample": False, "max_new_tokens": 60, "return_full_text": False}
    monitor = RecordingMonitor()
    together = runner.run(records, params, monitor)
    assert {0, 2, 3} in map(set, monitor.batches) or {0, 1, 2, 3} in map(set, monitor.batches)
    assert "constraint" not in together[1].output[0]
    for record, outcome in zip(records, together, strict=True):
        [alone] = generate(runner, [record], **params)
        assert (outcome.failure, outcome.output) == (alone.failure, alone.output)


def test_a_compiled_constraint_is_kept(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    from workers.inference.generation import constrained_decoding

    compiled = []
    original = constrained_decoding.LLMatcher

    def counted(*args: Any, **options: Any) -> Any:
        compiled.append(args)
        return original(*args, **options)

    counted.grammar_from_regex = original.grammar_from_regex  # type: ignore[attr-defined]
    monkeypatch.setattr(constrained_decoding, "LLMatcher", counted)
    for _ in range(3):
        generate(runner, PROMPTS, **GREEDY, regex="kept[0-9]")
    assert len(compiled) == 1


def test_a_text_that_is_cut_off_fails_alone_and_says_what_to_do(runner: Runner) -> None:
    params = {"do_sample": False, "max_new_tokens": 12, "usage": True}
    long = {"type": "array", "items": {"const": "a long text"}, "minItems": 3}
    [outcome] = generate(runner, ["the cat"], **params, json_schema=long)
    assert outcome.failure is not None
    assert outcome.failure.code == "incomplete_output"
    assert "max_new_tokens" in outcome.failure.message
    [request] = generate(runner, [ConstrainedInput("the cat", Constraint("json_schema", long))], **params)
    assert request.output[0]["finish_reason"] == "length"  # as the API marks it
    # A text that is complete at its last token is whole, although no token ended it.
    [exact] = generate(runner, ["the cat"], do_sample=False, max_new_tokens=1, choices=["a", "b"])
    assert exact.output[0]["generated_text"] in ("a", "b")


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"json_schema": {"type": "strin"}}, "type"),
        ({"json_schema": {"properties": {"a": {"required": "b"}}}}, r"json_schema\.properties\.a\.required"),
        ({"json_schema": {"allOf": [{"type": "string"}, {"type": "integer"}]}}, "incompatible types"),
        ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 2}}, "minimum"),
        ({"json_schema": {"$ref": "#/$defs/a"}}, r"\$defs/a"),
        ({"json_schema": {"$ref": "http://localhost/a"}}, "http://localhost/a"),
        ({"json_schema": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}}, "no text meets it"),
        ({"json_schema": {"not": {"type": "string"}}}, "not"),
        ({"json_schema": {"enum": ["x" * 70_000, "y"]}}, "65,536"),
        ({"json_schema": {}, "regex": "a"}, "only one"),
        ({"regex": "[a"}, "unclosed"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"choices": ["a"]}, "two texts or more"),
        ({"choices": ["a", "b"], "num_beams": 2}, "num_beams"),
        ({"choices": ["a", "b"], "stop_sequence": "a"}, "stop_strings"),
        ({"choices": ["a", "b"], "min_new_tokens": 3}, "min_new_tokens"),
        ({"choices": ["a", "b"], "return_full_text": True}, "return_full_text"),
    ],
)
def test_an_impossible_constraint_is_refused_before_any_record_runs(
    runner: Runner, params: dict[str, Any], said: str
) -> None:
    monitor = RecordingMonitor()
    with pytest.raises(ModelError, match=said) as caught:
        runner.run(PROMPTS, {**GREEDY, **params}, monitor)
    assert caught.value.code == "bad_param"
    assert len(caught.value.message) < 800
    assert monitor.batches == []


def test_a_record_with_an_impossible_constraint_of_its_own_fails_alone(runner: Runner) -> None:
    bad = ConstrainedInput("the cat", Constraint("json_schema", {"enum": []}))
    first, second = generate(runner, [bad, "the cat"], **GREEDY)
    assert first.failure is not None and first.failure.code == "bad_param"
    assert second.failure is None


def test_a_schema_that_is_nested_too_deeply_is_refused() -> None:
    schema: Json = {"type": "string"}
    for _ in range(5000):
        schema = {"items": schema}
    with pytest.raises(ValueError, match="64 levels"):
        Constraint("json_schema", schema)


def test_a_regex_without_bounds_ends_as_incomplete(gpt2: Path) -> None:
    [outcome] = run("text-generation", gpt2, ["the cat"], do_sample=False, max_new_tokens=30, regex="(x+x+)+y")
    assert outcome.failure is None or outcome.failure.code == "incomplete_output"
