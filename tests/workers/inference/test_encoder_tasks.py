"""The fast runner gives what the plain one gives, bad records and too long ones included; else the plain one runs.

What both give is compared with transformers itself in `test_runners_parity` and `test_runners_pipeline`.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from transformers import BertForTokenClassification

from common.records import Json, Outcome
from tests.support import tiny_models
from tests.support.pipeline_reference import assert_same, assert_same_as_pipeline, runner_of
from tests.support.tiny_models import SMALL, TEXTS, VOCABULARY, RecordingMonitor, mixed
from workers.inference.tasks.encoder_runner import EncoderRunner
from workers.inference.tasks.pipeline_runner import PipelineRunner

ModelCache = Callable[[str], Path]

BAD: list[Json] = ["", " ", None, 7, {"sentence": "a"}, {"text": ["a"]}, "half \ud83d"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> ModelCache:
    """Return a tiny model by the name of its function in `tiny_models`, made when first asked for."""
    base = tmp_path_factory.mktemp("models")

    def model(name: str) -> Path:
        return base / name if (base / name).exists() else getattr(tiny_models, name)(base / name)

    return model


def both(task: str, model: Path, records: list[Json], **params: Json) -> tuple[list[Outcome], list[Outcome]]:
    fast, plain = EncoderRunner(task, model, "cpu", {}), PipelineRunner(task, model, "cpu", {})
    assert fast.fast
    return fast.run(records, params, RecordingMonitor()), plain.run(records, params, RecordingMonitor())


def assert_equal(found: list[Outcome], expected: list[Outcome]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.failure, one.truncated) == (other.failure, other.truncated)
        assert_same(one.output, other.output)


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
def test_mixed_records_come_out_as_the_plain_way_gives_them(models, task, model, mask, params):
    records: list[Json] = mixed(300, mask)
    records[100:100] = [*BAD, f"the city {mask or ''} and {mask or ''} river"]
    found, expected = both(task, models(model), records, **params)
    assert_equal(found, expected)
    assert any(outcome.truncated for outcome in found)
    assert sum(outcome.failure is not None for outcome in found) < 50


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
def test_records_with_fields_of_their_own_give_what_the_pipeline_gives(models, task, model, records):
    assert_equal(*both(task, models(model), records))


@pytest.mark.parametrize(
    ("task", "model", "params"),
    [
        ("text-classification", "classifier", {"max_length": 6}),
        ("token-classification", "tagger", {"stride": 4, "aggregation_strategy": "simple"}),
        ("feature-extraction", "masked_bert", {"truncation": True}),
    ],
)
def test_parameters_that_the_fast_way_does_not_know_go_the_plain_way(models, task, model, params):
    assert_equal(*both(task, models(model), list(TEXTS), **params))


def test_positions_of_records_that_go_the_plain_way_are_those_of_the_chunk(models):
    monitor = RecordingMonitor()
    records = ["the [MASK]", "the cat " * 60 + "[MASK]", "a [MASK] or a dog", "the dog " * 60 + "[MASK]"]
    EncoderRunner("fill-mask", models("masked_bert"), "cpu", {}).run(records, {}, monitor)
    assert sorted(place for batch in monitor.batches for place in batch) == [0, 1, 2, 3]


class TwoFaced(BertForTokenClassification):
    """Gives other logits where it is told of no padding."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **more: object) -> object:
        output = super().forward(input_ids, attention_mask=attention_mask, **more)
        output.logits = output.logits + (attention_mask is None)
        return output


def test_a_model_that_gives_something_else_goes_the_plain_way(models, monkeypatch):
    monkeypatch.setattr("transformers.AutoModelForTokenClassification.from_pretrained", TwoFaced.from_pretrained)
    runner = EncoderRunner("ner", models("tagger"), "cpu", {})
    assert not runner.fast
    plain = PipelineRunner("ner", models("tagger"), "cpu", {})
    assert_equal(*(one.run(list(TEXTS), {}, RecordingMonitor()) for one in (runner, plain)))


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
    alone = [runner.run([record], {}, RecordingMonitor())[0] for record in records]
    assert_equal(found, alone)
    assert_same_as_pipeline("fill-mask", tmp_path, records)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_other_dtypes_go_the_fast_way_too(models, dtype):
    for task, model in (("fill-mask", "masked_bert"), ("ner", "tagger"), ("feature-extraction", "masked_bert")):
        assert runner_of(task, models(model), dtype=dtype).fast
