"""Bad records fail alone, long ones are cut and say so, and wrong parameters are refused before anything runs."""

import json
import logging

import pytest
from transformers import AutoTokenizer, pipeline

from common.errors import ModelError
from tests.support import tiny_models
from tests.support.pipeline_reference import assert_same, assert_same_as_pipeline, pipeline_outputs, run, runner_of
from tests.support.tiny_models import TEXTS, ForwardCount, RecordingMonitor

LONG = "the old cat likes the small bird " * 60
TABLE = {"city": ["paris", "seoul"], "people": ["2", "9"]}


@pytest.mark.parametrize(
    ("task", "model", "good", "bad"),
    [
        ("fill-mask", "masked_bert", "the [MASK] sleeps", "no mask here"),
        ("text-classification", "classifier", "the cat sleeps", {"text": 5}),
        ("token-classification", "tagger", "the cat sleeps", ""),
        (
            "table-question-answering",
            "table_answers",
            {"table": TABLE, "query": "which city"},
            {"table": 1, "query": "a"},
        ),
    ],
)
def test_one_bad_record_among_64_costs_one_failure_and_no_forward_pass(models, task, model, good, bad):
    records = [good] * 40 + [bad] + [good] * 23
    runner, monitor = runner_of(task, models(model)), RecordingMonitor()
    with ForwardCount() as alone:
        expected = runner.run([good], {}, RecordingMonitor())[0].output
    with ForwardCount() as together:
        outcomes = runner.run(records, {}, monitor)
    assert [position for position, outcome in enumerate(outcomes) if outcome.failure] == [40]
    for position in (0, 39, 41, 63):
        assert_same(outcomes[position].output, expected)
    assert (alone.passes, together.passes) == (1, len(monitor.batches))
    ran = [position for batch in monitor.batches for position in batch]
    assert sorted(ran) == [position for position in range(64) if position != 40]


def test_records_that_cannot_be_finished_do_not_make_their_batch_run_again(tmp_path):
    model = tiny_models.table_answers(tmp_path)
    config = json.loads((model / "config.json").read_text())
    config["aggregation_labels"] = {"9": "none that the model ever gives"}
    (model / "config.json").write_text(json.dumps(config))
    runner = runner_of("table-question-answering", model)
    with ForwardCount() as count:
        outcomes = runner.run([{"table": TABLE, "query": "which city"}] * 8, {}, RecordingMonitor())
    assert [outcome.failure and outcome.failure.code for outcome in outcomes] == ["runner_error"] * 8
    assert (count.passes, count.rows) == (1, 8)


def test_a_label_too_long_for_the_model_fails_its_record_alone(models):
    records = ["the cat", {"text": "a dog", "candidate_labels": ["cat", "cat " * 100]}, "the bird"]
    runner = runner_of("zero-shot-classification", models("natural_language_inference"))
    with ForwardCount() as count:
        outcomes = runner.run(records, {"candidate_labels": "a,b"}, RecordingMonitor())
    assert [outcome.failure and outcome.failure.code for outcome in outcomes] == [None, "too_long", None]
    assert count.rows == 4


@pytest.mark.parametrize(
    ("record", "code"),
    [
        ("no mask", "no_mask"),
        ("", "empty_text"),
        (" \t\n", "empty_text"),
        (5, "wrong_type"),
        (None, "wrong_type"),
        ({"text": ["[MASK]"]}, "wrong_type"),
        ({"sentence": "[MASK]"}, "missing_field"),
        ({"text": "[MASK]", "targets": [3]}, "wrong_type"),
        ("half a letter \ud83d [MASK]", "bad_text"),
    ],
)
def test_a_record_that_fill_mask_cannot_do_fails_with_its_code(models, record, code):
    bad, good = run("fill-mask", models("masked_bert"), [record, "the [MASK]"])
    assert bad.failure is not None
    assert bad.failure.code == code
    assert good.failure is None


@pytest.mark.parametrize(
    ("record", "code"),
    [
        ("the cat", "missing_field"),
        ({"text": "the cat", "candidate_labels": []}, "wrong_type"),
        ({"text": "the cat", "candidate_labels": ["a", 1]}, "wrong_type"),
        ({"text": "the cat", "candidate_labels": "a", "hypothesis_template": "none"}, "wrong_type"),
        ({"text": "the cat", "candidate_labels": "a", "hypothesis_template": "{} {}"}, "wrong_type"),
    ],
)
def test_a_record_without_good_labels_fails_alone(models, record, code):
    (outcome,) = run("zero-shot-classification", models("natural_language_inference"), [record])
    assert outcome.failure is not None
    assert outcome.failure.code == code


@pytest.mark.parametrize(
    ("table", "code"),
    [
        ("city", "wrong_type"),
        ({"city": "paris"}, "wrong_type"),
        ({"city": ["paris"], "people": ["1", "2"]}, "wrong_type"),
        ([{"city": "paris"}, "seoul"], "wrong_type"),
        ({}, "empty_text"),
        ([], "empty_text"),
        ({f"column {n}": ["a"] for n in range(200)}, "too_long"),
    ],
)
def test_a_value_that_is_not_a_table_fails_alone(models, table, code):
    (outcome,) = run("table-question-answering", models("table_answers"), [{"table": table, "query": "which"}])
    assert outcome.failure is not None
    assert outcome.failure.code == code


@pytest.mark.parametrize("mask", ["[MASK]", "<mask>"])
@pytest.mark.parametrize("model", ["masked_bert", "masked_roberta"])
def test_both_spellings_of_the_mask_work_for_every_model(models, model, mask, caplog):
    caplog.set_level(logging.INFO, "workers.inference")
    own = AutoTokenizer.from_pretrained(models(model)).mask_token
    texts = [f"{text[:40]} {{}} city" for text in TEXTS]
    outcomes = run("fill-mask", models(model), [text.format(mask) for text in texts])
    expected = pipeline_outputs("fill-mask", models(model), [text.format(own) for text in texts])
    for outcome, answer in zip(outcomes, expected, strict=True):
        assert_same(outcome.output, answer)
    said = [record for record in caplog.records if "is read as" in record.message]
    assert len(said) == (0 if mask == own else 1)


@pytest.mark.parametrize("model", ["masked_bert", "masked_roberta"])
@pytest.mark.parametrize("text", [LONG + "[MASK]", "[MASK] " + LONG, LONG + "[MASK] of [MASK] " + LONG])
def test_a_long_text_is_cut_to_a_window_around_its_masks(models, model, text):
    (outcome,) = run("fill-mask", models(model), [text])
    assert outcome.failure is None
    assert outcome.truncated
    first = outcome.output[0][0] if isinstance(outcome.output[0], list) else outcome.output[0]
    tokens = AutoTokenizer.from_pretrained(models(model))(first["sequence"], add_special_tokens=False)["input_ids"]
    assert 50 < len(tokens) <= 64


def test_the_window_keeps_the_neighbors_of_the_mask(models):
    near = "i go to [MASK] in the big red city"
    padding = "small blue " * 200
    (outcome,) = run("fill-mask", models("masked_bert"), [f"{padding}{near} {padding}"], top_k=1)
    word = outcome.output[0]["token_str"]
    assert near.replace("[MASK]", word) in outcome.output[0]["sequence"]


def test_masks_too_far_apart_for_one_window_fail_the_record(models):
    (outcome,) = run("fill-mask", models("masked_bert"), ["[MASK] " + LONG + "[MASK]"])
    assert outcome.failure is not None
    assert outcome.failure.code == "too_long"


@pytest.mark.parametrize("text", [LONG, "나는 학교에 간다 😀 " * 9000, "a" * 120_000])
def test_very_long_lines_go_through_cut_from_the_end(models, text):
    (outcome,) = run("text-classification", models("classifier"), [text])
    pipe = pipeline("text-classification", model=str(models("classifier")), device="cpu")
    assert_same(outcome.output, pipe(text, truncation=True, max_length=64))
    assert outcome.truncated == (len(pipe.tokenizer(text)["input_ids"]) > 64)


def test_whatever_is_cut_says_so_and_nothing_else_does(models):
    records = ["the cat", LONG]
    labels = {"candidate_labels": ["news", "sports"]}
    for task, model, params in (
        ("text-classification", "classifier", {}),
        ("token-classification", "tagger", {}),
        ("zero-shot-classification", "natural_language_inference", labels),
        ("feature-extraction", "masked_bert", {}),
    ):
        assert [outcome.truncated for outcome in run(task, models(model), records, **params)] == [False, True]


def test_a_text_as_long_as_the_model_takes_is_not_called_cut(models):
    exact = " ".join(["cat"] * 62)  # and two special tokens
    for task, model in (("text-classification", "classifier"), ("token-classification", "tagger")):
        outcomes = assert_same_as_pipeline(task, models(model), [exact])
        assert not outcomes[0].truncated


def test_rows_that_are_too_long_for_the_model_are_dropped(models):
    records = [{"table": {"city": ["paris"] * rows}, "query": "which city"} for rows in (2, 300)]
    outcomes = run("table-question-answering", models("table_answers"), records)
    assert [outcome.truncated for outcome in outcomes] == [False, True]


def test_without_truncation_a_long_text_fails_instead(models):
    short, long = run("text-classification", models("classifier"), ["the cat", LONG], truncation=False)
    assert short.failure is None
    assert long.failure is not None
    assert long.failure.code == "too_long"


@pytest.mark.parametrize(
    ("task", "model", "params", "said"),
    [
        ("fill-mask", "masked_bert", {"topk": 3}, "Did you mean top_k"),
        ("fill-mask", "masked_bert", {"color": "red"}, "Expected one of targets, top_k"),
        ("fill-mask", "masked_bert", {"top_k": "3"}, "whole number"),
        ("fill-mask", "masked_bert", {"top_k": True}, "whole number"),
        ("fill-mask", "masked_bert", {"top_k": 10_000}, "at most"),
        ("text-classification", "classifier", {"function_to_apply": "tanh"}, "sigmoid, softmax, none"),
        ("token-classification", "tagger", {"aggregation_strategy": "best"}, "simple"),
        ("token-classification", "tagger", {"stride": 64, "aggregation_strategy": "simple"}, "stride"),
        ("zero-shot-classification", "natural_language_inference", {"candidate_labels": ","}, "at least one label"),
        ("zero-shot-classification", "natural_language_inference", {"hypothesis_template": "a"}, "one {}"),
        ("zero-shot-classification", "natural_language_inference", {"hypothesis_template": "{{}}"}, "one {}"),
        ("zero-shot-classification", "natural_language_inference", {"hypothesis_template": "{.x}"}, "one {}"),
        ("zero-shot-classification", "natural_language_inference", {"multi_label": "yes"}, "true or false"),
        ("feature-extraction", "masked_bert", {"truncation": "all"}, "longest_first"),
    ],
)
def test_a_wrong_parameter_is_refused_before_any_record_runs(models, task, model, params, said):
    monitor = RecordingMonitor()
    with pytest.raises(ModelError, match=said) as caught:
        runner_of(task, models(model)).run(["the [MASK]"], params, monitor)
    assert caught.value.code == "bad_param"
    assert monitor.batches == []
