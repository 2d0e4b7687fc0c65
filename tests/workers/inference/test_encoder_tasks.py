"""`forward_batch` gives what the pipeline gives, bad records and long ones included, or the pipeline runs.

Both are compared with transformers itself in `test_parity` and `test_pipeline_tasks`.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import BertForTokenClassification

from common.errors import ModelError
from common.records import Json, Outcome
from common.task_params import TASK_PARAMS
from common.tasks import TASKS
from tests.support import tiny_models
from tests.support.pipeline_reference import assert_same, assert_same_as_pipeline, runner_of
from tests.support.tiny_models import SMALL, STRANGE, TEXTS, VOCABULARY, WORDS, RecordingMonitor, mixed
from workers.inference.tasks.encoder_tasks import ENCODER_TASKS, EncoderTask
from workers.inference.tasks.pipeline_runner import PipelineRunner

ModelCache = Callable[[str], Path]

BAD: list[Json] = ["", " ", None, 7, {"sentence": "a"}, {"text": ["a"]}, "half \ud83d"]
#: A tiny model for each head.
MODELS = {
    "AutoModelForMaskedLM": "masked_bert",
    "AutoModelForSequenceClassification": "natural_language_inference",
    "AutoModelForTokenClassification": "tagger",
    "AutoModel": "masked_bert",
}
LABELS = st.lists(st.sampled_from(["old news", "서울", "a cat", "dog " * 80]), min_size=1, max_size=3, unique=True)
#: Values for each parameter of an encoder task.
VALUES: dict[str, st.SearchStrategy[Json]] = {
    "top_k": st.integers(1, 9),
    "targets": st.lists(st.sampled_from(["paris", "seoul", "cat"]), min_size=1, unique=True),
    "function_to_apply": st.sampled_from(["sigmoid", "softmax", "none"]),
    "aggregation_strategy": st.sampled_from(["none", "simple", "first", "average", "max"]),
    "ignore_labels": st.lists(st.sampled_from(["O", "B-LOC"]), unique=True),
    "candidate_labels": LABELS,
    "hypothesis_template": st.sampled_from(["the {} city", "{}"]),
    "multi_label": st.booleans(),
    "truncation": st.booleans(),
    "max_length": st.integers(3, 9),
    "stride": st.integers(0, 4),
    "text_pair": st.sampled_from(TEXTS),
}


def through_pipeline(task: str, model: Path) -> PipelineRunner:
    runner = PipelineRunner(task, model, "cpu")
    runner.encoder = None
    return runner


@pytest.fixture(scope="module")
def pairs(models: ModelCache) -> Callable[[str, str], tuple[PipelineRunner, PipelineRunner]]:
    """Return for a task and a model a runner that uses `forward_batch`, and one that does not."""
    loaded: dict[tuple[str, str], tuple[PipelineRunner, PipelineRunner]] = {}

    def pair(task: str, model: str) -> tuple[PipelineRunner, PipelineRunner]:
        if (task, model) not in loaded:
            batched = PipelineRunner(task, models(model), "cpu")
            assert batched.encoder
            loaded[task, model] = batched, through_pipeline(task, models(model))
        return loaded[task, model]

    return pair


def assert_equal(found: list[Outcome], expected: list[Outcome]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.failure, one.truncated) == (other.failure, other.truncated)
        assert_same(one.output, other.output)


def assert_both_equal(both: tuple[PipelineRunner, PipelineRunner], records: list[Json], **params: Json) -> None:
    found, expected = (runner.run(records, params, RecordingMonitor()) for runner in both)
    assert_equal(found, expected)


def records_of(task: type[EncoderTask]) -> st.SearchStrategy[list[Json]]:
    """Return lists of records: texts of any length, with masks or without, and objects with fields of their own."""
    words = [*WORDS, *STRANGE, "[MASK]", "<mask>", "[PAD]", "[SEP]"]
    texts = st.lists(st.sampled_from(words), min_size=1, max_size=70).map(" ".join)
    if task.name == "fill-mask":
        texts = st.one_of(texts, texts.map("the [MASK] {}".format), texts.map("{} of <mask>".format))
    own = {name: VALUES[name] for name in TASKS[task.name].optional}
    objects = st.fixed_dictionaries({"text": texts}, optional=own)
    return st.lists(st.one_of(texts, objects, st.sampled_from(BAD)), min_size=1, max_size=5)


@pytest.mark.parametrize("task", ENCODER_TASKS, ids=lambda task: task.name)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_forward_batch_gives_what_the_pipeline_gives(pairs, task: type[EncoderTask], data: st.DataObject):
    both = pairs(task.name, MODELS[task.auto_class])
    names = data.draw(st.sets(st.sampled_from(sorted(TASK_PARAMS[task.name]))))
    params = {name: data.draw(VALUES[name], label=name) for name in sorted(names)}
    records = data.draw(records_of(task))
    try:
        expected = both[1].run(records, params, RecordingMonitor())
    except ModelError as error:  # parameters that do not fit together
        with pytest.raises(ModelError) as caught:
            both[0].run(records, params, RecordingMonitor())
        assert caught.value.code == error.code
    else:
        assert_equal(both[0].run(records, params, RecordingMonitor()), expected)


def test_pipeline_only_parameters_are_declared():
    for task in ENCODER_TASKS:
        assert task.pipeline_only_params <= TASK_PARAMS[task.name].keys()


@pytest.mark.parametrize(
    ("task", "model", "mask", "params"),
    [
        ("fill-mask", "masked_bert", "[MASK]", {}),
        ("fill-mask", "masked_roberta", "<mask>", {"top_k": 2}),
        ("fill-mask", "masked_bert", "[MASK]", {"targets": ["paris", "seoul"]}),
        ("text-classification", "classifier", None, {}),
        ("text-classification", "classifier", None, {"top_k": None, "function_to_apply": "sigmoid"}),
        ("token-classification", "tagger", None, {"aggregation_strategy": "simple"}),
        ("token-classification", "tagger", None, {"ignore_labels": []}),
        ("zero-shot-classification", "natural_language_inference", None, {"candidate_labels": ["old news", "서울"]}),
        ("feature-extraction", "masked_bert", None, {}),
    ],
)
def test_mixed_records_give_what_the_pipeline_gives(pairs, task, model, mask, params):
    records: list[Json] = mixed(300, mask)
    records[100:100] = [*BAD, f"the city {mask or ''} and {mask or ''} river"]
    found, expected = (runner.run(records, params, RecordingMonitor()) for runner in pairs(task, model))
    assert_equal(found, expected)
    assert any(outcome.truncated for outcome in found)
    assert sum(outcome.failure is not None for outcome in found) < 50


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("regression", 1),
        ("regression", 3),
        ("multi_label_classification", 3),
        ("single_label_classification", 3),
        (None, 1),
    ],
)
def test_scores_are_made_of_logits_as_the_model_says(tmp_path, kind, labels):
    model = tiny_models.classifier(tmp_path, ("bad", "good", "so-so")[:labels])
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "problem_type": kind}))
    for params in ({}, {"top_k": 2}):
        assert_same_as_pipeline("text-classification", model, TEXTS[:6], **params)


@pytest.mark.parametrize(
    ("task", "model", "records"),
    [
        (
            "fill-mask",
            "masked_bert",
            ["the [MASK]", {"text": "a [MASK] or [MASK]", "targets": ["paris", "cat", "dog"]}],
        ),
        ("fill-mask", "masked_bert", ["the <mask> of [PAD] [MASK]", "no mask", "<mask> is the city"]),
        ("text-classification", "classifier", ["a cat", {"text": "a cat", "text_pair": "the dog " * 50}]),
        (
            "zero-shot-classification",
            "natural_language_inference",
            [
                {"text": "a cat", "candidate_labels": "cat,dog", "multi_label": True},
                {"text": "a cat " * 60, "candidate_labels": ["cat"], "hypothesis_template": "{} it is"},
                {"text": "a cat", "candidate_labels": ["cat " * 80]},
                "without labels",
            ],
        ),
    ],
)
def test_records_with_fields_of_their_own_give_what_the_pipeline_gives(pairs, task, model, records):
    assert_both_equal(pairs(task, model), records)


@pytest.mark.parametrize(
    ("task", "model", "params"),
    [
        ("text-classification", "classifier", {"max_length": 6}),
        ("token-classification", "tagger", {"stride": 4, "aggregation_strategy": "simple"}),
        ("feature-extraction", "masked_bert", {"truncation": True}),
    ],
)
def test_jobs_with_pipeline_only_parameters_run_through_the_pipeline(pairs, task, model, params):
    assert_both_equal(pairs(task, model), list(TEXTS), **params)


def test_records_that_run_through_the_pipeline_keep_their_positions(models):
    monitor = RecordingMonitor()
    records = ["the [MASK]", "the cat " * 60 + "[MASK]", "a [MASK] or a dog", "the dog " * 60 + "[MASK]"]
    PipelineRunner("fill-mask", models("masked_bert"), "cpu").run(records, {}, monitor)
    assert sorted(position for batch in monitor.batches for position in batch) == [0, 1, 2, 3]


class Inconsistent(BertForTokenClassification):
    """Gives other logits if it gets no attention mask."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **more: object) -> object:
        output = super().forward(input_ids, attention_mask=attention_mask, **more)
        output.logits = output.logits + (attention_mask is None)
        return output


def test_a_model_that_gives_something_else_runs_through_the_pipeline(models, monkeypatch):
    monkeypatch.setattr("transformers.AutoModelForTokenClassification.from_pretrained", Inconsistent.from_pretrained)
    runner = PipelineRunner("ner", models("tagger"), "cpu")
    assert runner.encoder is None
    assert_both_equal((runner, through_pipeline("ner", models("tagger"))), list(TEXTS))


ARCHITECTURES = {
    "Albert": {"embedding_size": 16},
    "ConvBert": {},
    "DebertaV2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "Electra": {"embedding_size": 16},
    "FNet": {},  # lets padding be seen
    "MPNet": {},
    "MobileBert": {"embedding_size": 16, "intra_bottleneck_size": 16},
    "ModernBert": {"global_attn_every_n_layers": 1},
    "Nystromformer": {},  # here too
    "RoFormer": {"embedding_size": 32},
    "XLMRoberta": {},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_many_architectures_give_for_a_record_what_they_give_for_it_alone(tmp_path, name):
    tiny_models.wordpiece(tmp_path)
    torch.manual_seed(0)
    sizes = {**SMALL, "vocab_size": len(VOCABULARY), "max_position_embeddings": 80, "pad_token_id": 0}
    config = getattr(transformers, f"{name}Config")(**{**sizes, **ARCHITECTURES[name]})
    getattr(transformers, f"{name}ForMaskedLM")(config).save_pretrained(tmp_path)
    records = [f"[MASK] {text}"[:60] for text in TEXTS]
    runner = runner_of("fill-mask", tmp_path)
    found = runner.run(records, {}, RecordingMonitor())
    single = [runner.run([record], {}, RecordingMonitor())[0] for record in records]
    assert_equal(found, single)
    assert_same_as_pipeline("fill-mask", tmp_path, records)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_other_dtypes_use_forward_batch_too(models, dtype):
    for task, model in (("fill-mask", "masked_bert"), ("ner", "tagger"), ("feature-extraction", "masked_bert")):
        assert runner_of(task, models(model), dtype=dtype).encoder
