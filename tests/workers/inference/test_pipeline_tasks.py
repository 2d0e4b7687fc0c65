"""The pipeline runner gives, task by task, what `transformers.pipeline` gives for each record alone."""

import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification

from tests.support import tiny_models
from tests.support.pipeline_reference import assert_same, assert_same_as_pipeline, pipeline_outputs, run, runner_of
from tests.support.tiny_models import TEXTS, RecordingMonitor

LABELS = ["news", "sports", "politics of the old city"]
TABLE = {"city": ["paris", "seoul", "old town"], "people": ["2", "9", "7"]}


@pytest.mark.parametrize("params", [{}, {"top_k": 2}, {"targets": ["paris", "seoul", "cat"]}, {"targets": "dog"}])
def test_fill_mask_gives_what_the_pipeline_gives(models, params):
    records = [f"[MASK] {text}"[:120] for text in TEXTS] + ["the [MASK] of [MASK]", "나는 [MASK]에 간다 😀"]
    assert_same_as_pipeline("fill-mask", models("masked_bert"), records, **params)


def test_fill_mask_takes_targets_with_the_record(models):
    records = [
        "the [MASK]",
        {"text": "the [MASK]", "targets": ["paris", "cat"]},
        {"text": "a [MASK]", "targets": "dog"},
    ]
    outcomes = assert_same_as_pipeline("fill-mask", models("masked_bert"), records)
    assert {row["token_str"] for row in outcomes[1].output} == {"paris", "cat"}


def test_fill_mask_with_a_byte_level_tokenizer_matches_the_pipeline(models):
    records = [f"{text[:60]} <mask>" for text in TEXTS] + ["<mask> and <mask>"]
    assert_same_as_pipeline("fill-mask", models("masked_roberta"), records)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"top_k": 2},
        {"top_k": None},
        {"function_to_apply": "sigmoid"},
        {"function_to_apply": "none"},
        {"max_length": 6},
    ],
)
def test_text_classification_gives_what_the_pipeline_gives(models, params):
    records = [*TEXTS, {"text": "the cat sleeps", "text_pair": "the dog runs"}]
    assert_same_as_pipeline("text-classification", models("classifier"), records, **params)


def test_an_alias_names_the_same_runner(models):
    (outcome,) = run("sentiment-analysis", models("classifier"), ["good news"])
    assert_same([outcome.output], pipeline_outputs("text-classification", models("classifier"), ["good news"]))


def test_a_decoder_without_a_padding_token_classifies_one_by_one(models, tmp_path):
    vocabulary, _ = tiny_models.byte_level_files(tmp_path)
    tiny_models.causal_gpt2(tmp_path)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(vocabulary), n_positions=96, n_embd=32, n_layer=2, n_head=2, num_labels=3)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    assert_same_as_pipeline("text-classification", tmp_path, [text[:40] for text in TEXTS])


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"aggregation_strategy": "simple"},
        {"aggregation_strategy": "first"},
        {"aggregation_strategy": "average"},
        {"ignore_labels": ["B-PER", "I-PER"]},
        {"aggregation_strategy": "simple", "stride": 4},
    ],
)
def test_token_classification_gives_what_the_pipeline_gives(models, params):
    assert_same_as_pipeline("token-classification", models("tagger"), [*TEXTS, "the old city " * 60], **params)


def test_the_windows_of_a_long_text_are_put_together_again(models):
    long = "the capital of france is paris and the cat sleeps " * 20
    whole = run("ner", models("tagger"), [long], aggregation_strategy="simple", stride=8)[0]
    cut = run("ner", models("tagger"), [long], aggregation_strategy="simple")[0]
    assert max(entity["end"] for entity in whole.output) > len(long) - 60
    assert max(entity["end"] for entity in cut.output) < len(long) / 2
    assert (whole.truncated, cut.truncated) == (False, True)


@pytest.mark.parametrize(
    "params",
    [
        {"candidate_labels": LABELS},
        {"candidate_labels": "news, sports,, politics"},
        {"candidate_labels": ["news"]},
        {"candidate_labels": LABELS, "multi_label": True},
        {"candidate_labels": LABELS, "hypothesis_template": "{} is what this is"},
    ],
)
def test_zero_shot_classification_gives_what_the_pipeline_gives(models, params):
    records = [*TEXTS, {"text": "cats", "candidate_labels": ["cat", "dog"]}, {"text": "dogs", "multi_label": True}]
    assert_same_as_pipeline("zero-shot-classification", models("natural_language_inference"), records, **params)


def test_zero_shot_records_may_bring_all_their_labels_themselves(models):
    records = [
        {"text": "the cat", "candidate_labels": "cat,dog"},
        {
            "text": "the cat",
            "candidate_labels": ["a", "b", "c"],
            "hypothesis_template": "it is {}",
            "multi_label": True,
        },
    ]
    assert_same_as_pipeline("zero-shot-classification", models("natural_language_inference"), records)


def test_feature_extraction_gives_what_the_pipeline_gives(models):
    # A masked model has no pooler, which nobody asks for here.
    assert_same_as_pipeline("feature-extraction", models("masked_bert"), list(TEXTS))


def test_table_question_answering_gives_what_the_pipeline_gives(models):
    tables = [TABLE, {"cat": ["red"]}, [{"city": "berlin", "old": "1"}, {"city": "tokyo", "old": "2"}]]
    queries = ["how many people live in paris", "which city is old?", "서울은 big city 😀"]
    records = [{"table": table, "query": query} for table in tables for query in queries]
    outcomes = assert_same_as_pipeline("table-question-answering", models("table_answers"), records)
    assert any(outcome.output["coordinates"] for outcome in outcomes)


def test_cells_of_any_type_are_read_as_text(models):
    typed = {"city": ["paris", None], "people": [2, 9.5]}
    texts = {"city": ["paris", ""], "people": ["2", "9.5"]}
    records = [{"table": typed, "query": "how many people"}, {"table": texts, "query": "how many people"}]
    first, second = run("table-question-answering", models("table_answers"), records)
    assert first.output == second.output


GREEDY = {"do_sample": False, "max_new_tokens": 10}
CHATS = [
    {"messages": [{"role": "user", "content": "the cat 나는 😀"}]},
    {"messages": [{"role": "user", "content": "go home"}, {"role": "assistant", "content": "i like"}]},
]


@pytest.mark.parametrize(
    "params",
    [
        GREEDY,
        {**GREEDY, "return_full_text": False},
        {**GREEDY, "stop_sequence": ["e", "the"]},
        {**GREEDY, "skip_special_tokens": False, "max_new_tokens": 20},
        {**GREEDY, "prefix": "the big "},
        {**GREEDY, "num_beams": 3, "num_return_sequences": 2},
        {**GREEDY, "repetition_penalty": 1.4},
        {**GREEDY, "no_repeat_ngram_size": 2},
        {"do_sample": False, "max_length": 70},
        {**GREEDY, "min_length": 20},
        {**GREEDY, "stop_sequence": "e", "skip_special_tokens": False},
    ],
)
@pytest.mark.filterwarnings("ignore:Unfeasible length constraints")
@pytest.mark.parametrize("pad", [False, True])
def test_text_generation_gives_what_the_pipeline_gives(models, tmp_path, params, pad):
    model = tiny_models.causal_gpt2(tmp_path, pad=True) if pad else models("causal_gpt2")
    records = [*(text[:50] for text in TEXTS[:10]), *CHATS]
    assert_same_as_pipeline("text-generation", model, records, **params)


def test_short_and_long_prompts_share_a_batch_where_padding_is_ignored(models):
    records, shared, apart = ["a", "the cat sleeps in the old city"], RecordingMonitor(), RecordingMonitor()
    runner = runner_of("text-generation", models("causal_gpt2"))
    runner.run(records, GREEDY, shared)
    runner.run(records, {**GREEDY, "repetition_penalty": 1.4}, apart)
    assert shared.batches == [[0, 1]]
    assert apart.batches == [[1], [0]]


@pytest.mark.parametrize(
    ("task", "model", "record", "params"),
    [
        ("fill-mask", "masked_bert", "the [MASK] sleeps", {}),
        ("text-classification", "classifier", "good news", {}),
        ("token-classification", "tagger", "berlin is old", {}),
        ("zero-shot-classification", "natural_language_inference", "good news", {"candidate_labels": LABELS}),
        ("feature-extraction", "masked_bert", "good news", {}),
        ("table-question-answering", "table_answers", {"table": TABLE, "query": "which city"}, {}),
        ("text-generation", "causal_gpt2", "good news", GREEDY),
    ],
)
def test_every_task_runs_in_half_precision(models, task, model, record, params):
    full, half = runner_of(task, models(model)), runner_of(task, models(model), dtype="bfloat16")
    (outcome,) = half.run([record], params, RecordingMonitor())
    assert outcome.failure is None
    assert half.memory_bytes() < 0.6 * full.memory_bytes()
