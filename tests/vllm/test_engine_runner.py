"""What vLLM generates beside what transformers does, on a real chat model in float32: greedy texts are the same."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import jsonschema
import pytest
import torch

from common.errors import Cancelled, ModelError
from common.output_constraints import ConstrainedInput, Constraint
from common.records import Json, Outcome
from tests.support.processes import wait_until
from tests.support.tiny_models import RecordingMonitor
from workers.inference.core.runner import NullMonitor, RunMonitor, Runner
from workers.inference.tasks.runners import find_runner
from workers.models.load_options import LoadOptions

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

TEXTS = (
    "The capital of France is",
    "Write a short poem about autumn leaves.",
    "1 2 3 4 5",
    "How do I reverse a list in Python?",
    "Who wrote Pride and Prejudice?",
    "Name the planets of the solar system in order, starting with the one nearest to the sun.",
    "My train leaves at 8:40, and the walk to the station takes 25 minutes. When should I leave home?",
    "안녕하세요",
)
GREEDY: dict[str, Json] = {"do_sample": False, "max_new_tokens": 24, "chat": False}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine(smollm2: Path) -> Iterator[Runner]:
    runner = find_runner("text-generation", "vllm").load("text-generation", smollm2, "cpu", LoadOptions())
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def plain(smollm2: Path) -> Runner:
    return find_runner("text-generation").load("text-generation", smollm2, "cpu", LoadOptions())


def outputs(runner: Runner, inputs: Sequence[Json], params: dict[str, Json]) -> list[Json]:
    outcomes = run(runner, inputs, params)
    assert not [outcome.failure for outcome in outcomes if outcome.failure]
    return [outcome.output for outcome in outcomes]


def run(
    runner: Runner, inputs: Sequence[Json], params: dict[str, Json], monitor: RunMonitor | None = None
) -> list[Outcome]:
    return runner.run(inputs, params, monitor or NullMonitor())


def assert_same_but_for_ties(plain: Runner, prompts: Sequence[str], found: Sequence[str], expected: Sequence[str]):
    """Two tokens may be equally likely, to the last digits: at the first difference they are."""
    tokenizer, model = plain.task.tokenizer, plain.task.pipe.model
    for prompt, one, other in zip(prompts, found, expected, strict=True):
        if one == other:
            continue
        ours, theirs = (tokenizer(prompt + text)["input_ids"] for text in (one, other))
        at = next(n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
        with torch.inference_mode():
            logits = model(torch.tensor([theirs[:at]])).logits[0, -1]
        assert abs(float(logits[ours[at]] - logits[theirs[at]])) < 1e-3, (one, other)


def test_greedy_texts_are_those_of_transformers(engine, plain):
    params = {**GREEDY, "return_full_text": False}
    ours, theirs = ([one["generated_text"] for [one] in outputs(r, TEXTS, params)] for r in (engine, plain))
    assert_same_but_for_ties(plain, TEXTS, ours, theirs)
    assert run(engine, TEXTS[:1], GREEDY)[0].output[0]["generated_text"].startswith(TEXTS[0])


def test_chats_with_a_system_prompt_are_those_of_transformers(engine, plain):
    system = "You are a pirate. Answer in one sentence."
    chats = [*TEXTS[3:6], {"messages": [{"role": "user", "content": "Hello"}]}]
    params = {"do_sample": False, "max_new_tokens": 24, "return_full_text": False, "chat": True, "system": system}
    prompts = [
        plain.task.tokenizer.apply_chat_template(
            [{"role": "system", "content": system}, *(c["messages"] if isinstance(c, dict) else [_user(c)])],
            tokenize=False, add_generation_prompt=True,
        )
        for c in chats
    ]  # fmt: skip
    ours, theirs = ([one["generated_text"] for [one] in outputs(r, chats, params)] for r in (engine, plain))
    assert_same_but_for_ties(plain, prompts, ours, theirs)


def _user(text: str) -> Json:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    "more",
    [
        {"stop_sequence": ["the", "\n\n"]},
        {"min_new_tokens": 20, "repetition_penalty": 1.3},
        {"eos_token_id": 198},
        {"max_new_tokens": None, "max_length": 30},
        {"min_new_tokens": 30, "eos_token_id": [2, 1_000_000]},  # more than the maximum; no token of the model
        {"do_sample": True, "top_p": 0, "seed": 1},
    ],
    ids=["stop", "min_new_tokens", "eos_token_id", "max_length", "out-of-range", "top_p"],
)
def test_limits_and_stops_count_as_for_transformers(engine, plain, more):
    params = {name: value for name, value in (GREEDY | more).items() if value is not None}
    params |= {"usage": True, "return_full_text": False}
    ours, theirs = outputs(engine, TEXTS[:5], params), outputs(plain, TEXTS[:5], params)
    for prompt, [one], [other] in zip(TEXTS, ours, theirs, strict=False):
        if one["generated_text"] == other["generated_text"]:
            assert one == other
        assert_same_but_for_ties(plain, [prompt], [one["generated_text"]], [other["generated_text"]])


def test_a_seed_decides_a_record_whatever_runs_beside_it(engine):
    params = {"do_sample": True, "seed": 7, "num_return_sequences": 3, "max_new_tokens": 12, "chat": False}
    together = outputs(engine, TEXTS, params)
    assert outputs(engine, TEXTS[1:2], params) == together[1:2]
    assert [len(copies) for copies in together] == [3] * len(TEXTS)
    assert len({one["generated_text"] for one in together[1]}) == 3
    assert outputs(engine, TEXTS[1:2], params | {"seed": 8}) != together[1:2]
    assert engine.is_deterministic(params)
    del params["seed"]
    assert not engine.is_deterministic(params)


@pytest.mark.parametrize(
    ("kind", "value"), [("json_schema", SCHEMA), ("regex", r"[A-Z][a-z]{2,8} \d{4}"), ("choices", ["yes", "no", "c++"])]
)
def test_texts_meet_their_constraint(engine, kind, value):
    params = {kind: value, "do_sample": True, "max_new_tokens": 60}
    for [one] in outputs(engine, TEXTS, params):
        text = one["generated_text"]
        if kind == "json_schema":
            jsonschema.validate(json.loads(text), value)
        elif kind == "regex":
            assert re.fullmatch(value, text)
        else:
            assert text in value


def test_records_with_constraints_of_their_own_run_with_others(engine):
    constrained = [ConstrainedInput(TEXTS[n], Constraint("choices", [f"a{n}", f"b{n}"])) for n in range(3)]
    *found, free = outputs(engine, [*constrained, TEXTS[3]], GREEDY)
    assert [one["generated_text"] in (f"a{n}", f"b{n}") for n, [one] in enumerate(found)] == [True] * 3
    assert len(free[0]["generated_text"]) > 3


def test_a_text_that_is_cut_off_before_it_meets_its_schema_is_marked(engine):
    [found] = run(engine, TEXTS[:1], {"json_schema": SCHEMA, "max_new_tokens": 3, "do_sample": False})
    assert found.failure is not None
    assert found.failure.code == "incomplete_output"


def test_a_record_that_cannot_run_fails_alone(engine, plain):
    inputs = [TEXTS[0], 5, "", TEXTS[2]]
    ours, theirs = ([one.failure for one in run(r, inputs, GREEDY)] for r in (engine, plain))
    assert [failure and failure.code for failure in ours] == [failure and failure.code for failure in theirs]
    assert ours[0] is ours[3] is None
    assert ours[1] is not None


def test_a_record_that_vllm_refuses_fails_alone(engine):
    engine._task.tokenizer.add_tokens(["<none>"])  # one more token than the model has
    monitor = RecordingMonitor()
    before, refused, after = run(engine, [TEXTS[0], "<none>", TEXTS[2]], GREEDY, monitor)
    assert before.failure is after.failure is None
    assert refused.failure.code == "runner_error"
    assert "vocabulary" in refused.failure.message
    assert monitor.batches == [[0, 1, 2]]


def test_a_record_beyond_the_room_of_the_engine_fails_alone(engine, monkeypatch):
    monkeypatch.setattr(engine._engine, "context", 40)  # as where memory is short
    short, long = run(engine, [TEXTS[0], TEXTS[5] + TEXTS[6]], GREEDY)
    assert short.failure is None
    assert long.failure.code == "too_long"


def test_a_prompt_beyond_the_context_is_cut_from_the_front(engine):
    [found] = run(engine, ["word " * 9000], {**GREEDY, "max_new_tokens": 2})
    assert found.truncated
    assert found.failure is None


@pytest.mark.parametrize(
    "params", [{"num_beams": 2}, {"no_repeat_ngram_size": 2}, {"do_sample": True, "typical_p": 0.5}]
)
def test_it_refuses_what_vllm_has_no_word_for(engine, params):
    name, value = list(params.items())[-1]
    assert engine.refusal(params) == f"{name}={value}"
    assert engine.refusal(GREEDY) is None


def test_wrong_parameters_fail_the_job(engine):
    with pytest.raises(ModelError, match="max_new_tokens"):
        run(engine, TEXTS, {"max_new_tokens": 100_000})


def test_a_cancel_ends_what_is_in_flight(engine):
    with pytest.raises(Cancelled):
        run(engine, [f"{text} {n}" for text in TEXTS for n in range(4)], {**GREEDY, "max_new_tokens": 500},
            RecordingMonitor(cancel_after=1))  # fmt: skip
    wait_until(lambda: _in_flight(engine) == 0, 30, "vLLM has nothing left to do")
    assert outputs(engine, TEXTS[:1], GREEDY)


def test_the_next_chunk_is_in_flight_before_this_one_runs(engine):
    chunks = [engine.prepare(TEXTS[:4], GREEDY), engine.prepare(TEXTS[4:], GREEDY)]
    wait_until(lambda: _in_flight(engine) == 8, 30, "vLLM has both chunks")
    found = [outcome.output for chunk in chunks for outcome in engine.run_prepared(chunk, NullMonitor())]
    assert found == outputs(engine, TEXTS, GREEDY)
    unwanted = engine.prepare(TEXTS, {**GREEDY, "max_new_tokens": 500})
    wait_until(lambda: _in_flight(engine) == 8, 30, "vLLM has the chunk")
    del unwanted
    wait_until(lambda: _in_flight(engine) == 0, 30, "a chunk that is dropped is aborted")


def _in_flight(engine: Runner) -> int:
    return engine._engine._llm.get_num_unfinished_requests()


def test_log_probabilities_are_those_of_transformers(engine, plain):
    params = {**GREEDY, "max_new_tokens": 6, "logprobs": 3, "return_full_text": False}
    for [one], [other] in zip(*(outputs(runner, TEXTS[:4], params) for runner in (engine, plain)), strict=True):
        if one["generated_text"] != other["generated_text"]:  # a tie
            continue
        for ours, theirs in zip(one["logprobs"], other["logprobs"], strict=True):
            assert ours["token"] == theirs["token"]
            assert ours["logprob"] == pytest.approx(theirs["logprob"], abs=1e-3)
            assert len(ours["top_logprobs"]) == 3
