"""Embedding models and rerankers are trained as sentence-transformers' own trainers train them, and serve."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.numpy import load_file
from sentence_transformers import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.cross_encoder import losses as pair_losses
from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator, TripletEvaluator
from transformers import PrinterCallback, set_seed

from common.errors import ModelError, UsageError, WorkerError
from tests.support import tiny_sentence_transformers as tiny
from tests.support.finetune_runs import make_run_config, train_here
from tests.support.tiny_models import RecordingMonitor, classifier
from tests.support.translations import Translations, encoder_base
from workers.inference.core.runner import Runner
from workers.inference.tasks.runners import find_runner
from workers.training.run_config import TrainingRunConfig

Rows = list[dict[str, Any]]
MADE = Translations()
KNOWN, UNSEEN = MADE.known[:24], MADE.unseen
TRAIN = {
    "pairs": MADE.pairs(MADE.known),
    "triplets": MADE.triplets(MADE.known),
    "scored": MADE.scored(MADE.known * 2),
    "ranked": MADE.ranked(MADE.known),
}
EVAL = {
    "pairs": MADE.pairs(UNSEEN),
    "triplets": MADE.triplets(UNSEEN * 3),
    "scored": MADE.scored(UNSEEN * 3),
    "ranked": MADE.ranked(UNSEEN),
}
#: The options of every run of this file, and the same for the trainers of sentence-transformers.
OPTIONS: dict[str, Any] = {"batch_size": 8, "learning_rate": 3e-3}
SCRIPT: dict[str, Any] = {
    "per_device_train_batch_size": 8, "learning_rate": 3e-3, "warmup_steps": 0.1, "weight_decay": 0.01, "seed": 42,
    "num_train_epochs": 2, "use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no",
    "logging_steps": 1, "dataloader_pin_memory": False, "eval_strategy": "epoch", "per_device_eval_batch_size": 16,
}  # fmt: skip
#: The model of the last step, instead of the best one.
UNCHOSEN: dict[str, Any] = {"epochs": 2, "arguments": {"load_best_model_at_end": False}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_base(tmp_path_factory.mktemp("encoders") / "base")


def task_of(kind: str) -> str:
    return "rerank" if kind == "ranked" else "embedding"


def run(work: Path, base: Path, kind: str, evaluation: Rows = (), **options: Any) -> TrainingRunConfig:  # type: ignore[assignment]
    return make_run_config(work, task_of(kind), base, TRAIN[kind], evaluation, **{**OPTIONS, **options})


def weights(directory: Path) -> dict[str, Any]:
    return load_file(directory / "model.safetensors")


def same(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=tolerance), name


def runner_of(config: TrainingRunConfig) -> Runner:
    return find_runner(config.job.task).load(config.job.task, config.model_dir, "cpu")


def outputs(config: TrainingRunConfig, inputs: list[Any]) -> list[Any]:
    return [outcome.output for outcome in runner_of(config).run(inputs, {}, RecordingMonitor())]


def to_dataset(kind: str, rows: Rows) -> Dataset:
    """The columns that a script would have."""
    if kind == "ranked":
        pairs = [pair for row in rows for pair in zip(row["documents"], row["labels"], strict=True)]
        queries = [row["query"] for row in rows for _ in row["documents"]]
        documents, labels = zip(*pairs, strict=True)
        return Dataset.from_dict({"query": queries, "document": list(documents), "label": list(labels)})
    columns = {f"text_{n}": list(texts) for n, texts in enumerate(zip(*(row["texts"] for row in rows), strict=True))}
    if kind == "scored":
        columns["score"] = [row["score"] for row in rows]
    return Dataset.from_dict(columns)


def train_by_script(base: Path, out: Path, kind: str, train: Rows, evaluation: Rows, loss: Any) -> Any:
    """What a user of sentence-transformers would write, with the defaults of `finetune` spelled out."""
    set_seed(42)
    more = {"batch_sampler": "no_duplicates"} if kind in ("pairs", "triplets") else {}
    parts = {
        "ranked": (CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments, {"num_labels": 1}),
    }.get(kind, (SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments, {}))
    model_class, trainer_class, arguments_class, options = parts
    model = model_class(str(base), device="cpu", **options)
    trainer = trainer_class(
        model, arguments_class(output_dir=str(out / "work"), **SCRIPT, **more), to_dataset(kind, train),
        to_dataset(kind, evaluation), loss=loss(model), callbacks=[],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model.save(str(out))
    return trainer


def curve(result: dict[str, Any]) -> list[float]:
    return [point[1] for point in result["curve"]]


def logged(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("kind", ["triplets", "scored"])
def test_an_embedding_model_is_that_of_sentence_transformers_own_trainer(kind: str, base: Path, tmp_path: Path) -> None:
    config = run(tmp_path / "ours", base, kind, EVAL[kind], **UNCHOSEN)
    result = train_here(config)
    loss = losses.MultipleNegativesRankingLoss if kind == "triplets" else losses.CoSENTLoss
    trainer = train_by_script(base, tmp_path / "script", kind, TRAIN[kind], EVAL[kind], loss)
    assert curve(result) == pytest.approx(logged(trainer), abs=1e-5)
    assert len(set(curve(result))) > 5
    same(weights(config.model_dir), weights(tmp_path / "script"))
    model = SentenceTransformer(str(config.model_dir), device="cpu")
    held_out = list(zip(*(row["texts"] for row in EVAL[kind]), strict=True))
    if kind == "triplets":
        measured = {"accuracy": TripletEvaluator(*map(list, held_out))(model)["cosine_accuracy"]}
    else:
        scores = [row["score"] for row in EVAL[kind]]
        found = EmbeddingSimilarityEvaluator(*map(list, held_out), scores)(model)
        measured = {"spearman": found["spearman_cosine"], "pearson": found["pearson_cosine"]}
    assert {name: result["metrics"][name] for name in measured} == pytest.approx(measured, abs=1e-6)
    assert np.stack(outputs(config, list(held_out[1]))) == pytest.approx(model.encode(held_out[1]), abs=1e-5)


def test_a_reranker_is_that_of_sentence_transformers_own_trainer(base: Path, tmp_path: Path) -> None:
    config = run(tmp_path / "ours", base, "ranked", EVAL["ranked"], **UNCHOSEN)
    result = train_here(config)
    trainer = train_by_script(
        base, tmp_path / "script", "ranked", TRAIN["ranked"], EVAL["ranked"], pair_losses.BinaryCrossEntropyLoss
    )
    assert curve(result) == pytest.approx(logged(trainer), abs=1e-5)
    same(weights(config.model_dir), weights(tmp_path / "script"))
    saved = CrossEncoder(str(config.model_dir), device="cpu")
    samples = [
        {
            "query": row["query"],
            "positive": [d for d, label in zip(row["documents"], row["labels"], strict=True) if label],
            "negative": [d for d, label in zip(row["documents"], row["labels"], strict=True) if not label],
        }
        for row in EVAL["ranked"]
    ]
    ranking = CrossEncoderRerankingEvaluator([one for one in samples if one["positive"] and one["negative"]])(saved)
    names = ("ndcg@10", "mrr@10", "map")
    assert {n: result["metrics"][n] for n in names} == pytest.approx({n: ranking[n] for n in names}, abs=1e-6)
    found = outputs(config, [{"query": row["query"], "documents": row["documents"]} for row in EVAL["ranked"]])
    for row, one in zip(EVAL["ranked"], found, strict=True):
        expected = saved.predict([(row["query"], document) for document in row["documents"]])
        assert {item["index"]: item["score"] for item in one} == pytest.approx(dict(enumerate(expected)), abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "metric", "options"),
    [
        ("pairs", "ndcg@10", {"matryoshka_dims": (32, 8)}),
        ("triplets", "accuracy", {"loss": "TripletLoss"}),
        ("scored", "spearman", {"loss": "CosineSimilarityLoss"}),
        ("ranked", "ndcg@10", {"loss": "LambdaLoss"}),
        ("ranked", "average_precision", {}),
    ],
)
def test_training_makes_it_better_on_sentences_it_has_not_seen(
    kind: str, metric: str, options: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    seldom = {"eval_strategy": "steps", "eval_steps": 20, "eval_on_start": True}
    result = train_here(
        run(tmp_path / "work", base, kind, EVAL[kind], epochs=8, arguments=seldom, metric_for_best=metric, **options)
    )
    before, after = result["evaluations"][0], result["metrics"]
    assert after[metric] > before[metric] + 0.1
    assert after[metric] > 0.8
    assert after[metric] == max(entry[metric] for entry in result["evaluations"]) == result["best_metric"]
    if "matryoshka_dims" in options:
        assert after["ndcg@10_dim_8"] > before["ndcg@10_dim_8"] + 0.1


@pytest.mark.parametrize(("kind", "lora"), [("scored", False), ("ranked", True)])
def test_a_run_resumed_from_a_checkpoint_has_the_same_weights(
    kind: str, lora: bool, base: Path, tmp_path: Path
) -> None:
    often = {"save_strategy": "steps", "save_steps": 5, "load_best_model_at_end": False, "save_total_limit": 9}
    options: dict[str, Any] = {"epochs": 2, "lora": lora, "max_length": 32, "report_to": ["tensorboard"]}
    whole = run(tmp_path / "1-1-a", base, kind, arguments=often, **options)
    steps = train_here(whole)["steps"]
    later = steps * 3 // 4 // 5 * 5  # within the second epoch
    again = run(tmp_path / "1-2-b", base, kind, arguments=often, **options)
    assert later > steps / 2
    assert train_here(replace(again, checkpoint=f"{whole.work_dir}/checkpoint-{later}"))["steps"] == steps
    same(weights(again.model_dir), weights(whole.model_dir))
    assert not any("lora" in name for name in weights(again.model_dir))
    assert len(list(again.model_dir.glob("runs/*/events*"))) == 2  # TensorBoard's, of both attempts
    assert json.loads((again.model_dir / "tokenizer_config.json").read_text())["model_max_length"] == 64


def test_prompts_of_the_base_model_are_learned_as_they_are_used(base: Path, tmp_path: Path) -> None:
    prompts = {"query": "the old ", "document": "a "}
    SentenceTransformer(str(base), device="cpu", prompts=prompts).save(str(tmp_path / "base"))
    ours = run(tmp_path / "ours", tmp_path / "base", "pairs", TRAIN["pairs"][:8], **UNCHOSEN)
    train_here(ours)
    rows = [{"texts": [f"the old {one}", f"a {other}"]} for one, other in (row["texts"] for row in TRAIN["pairs"])]
    train_by_script(base, tmp_path / "script", "pairs", rows, rows[:8], losses.MultipleNegativesRankingLoss)
    same(weights(ours.model_dir), weights(tmp_path / "script"))
    assert SentenceTransformer(str(ours.model_dir), device="cpu").prompts == prompts


def test_a_static_model_and_a_router_are_trained_by_their_own_modules(tmp_path: Path) -> None:
    static = run(tmp_path / "static", tiny.static(tmp_path / "one"), "pairs", epochs=1)
    router = run(tmp_path / "router", tiny.with_module("Router", tmp_path / "two"), "pairs", EVAL["pairs"], epochs=1)
    for config in (static, router):
        before = next(iter(SentenceTransformer(config.base_model, device="cpu").parameters())).detach().clone()
        train_here(config)
        model = SentenceTransformer(str(config.model_dir), device="cpu")
        assert (next(iter(model.parameters())) != before).any()
    expected = SentenceTransformer(str(static.model_dir), device="cpu").encode(["the old cat"])
    assert np.stack(outputs(static, ["the old cat"])) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ModelError, match="this model has none"):
        train_here(replace(static, options=replace(static.options, lora=True)))


def test_a_model_of_another_kind_gives_its_transformer_and_says_so(tmp_path: Path) -> None:
    three = tiny.reranker(tmp_path / "three", ("no", "so-so", "yes"))
    result = train_here(run(tmp_path / "ranked", three, "ranked", epochs=1))
    assert result["notes"] == ["The head (classifier) is newly initialized: the base model's has another size."]
    [note] = train_here(run(tmp_path / "pairs", three, "pairs", epochs=1))["notes"]
    assert note == "The base model is a CrossEncoder: its transformer is trained, with mean pooling."


def test_a_classifier_of_one_number_keeps_its_head(tmp_path: Path) -> None:
    one = classifier(tmp_path / "one", ("fits",))
    config = run(tmp_path / "work", one, "ranked", epochs=1, **{"learning_rate": 1e-12})
    assert train_here(config)["notes"] == []
    same(weights(config.model_dir), weights(one))


def test_the_card_names_the_library_and_the_loss_and_quotes_no_example(base: Path, tmp_path: Path) -> None:
    config = run(tmp_path / "work", base, "pairs", EVAL["pairs"], epochs=1)
    result = train_here(config)
    card = (config.model_dir / "README.md").read_text()
    assert "pipeline_tag: sentence-similarity" in card and "library_name: sentence-transformers" in card
    assert "* loss: MultipleNegativesRankingLoss" in card and "pairs of texts that belong together" in card
    assert not any(row["texts"][0] in card for row in TRAIN["pairs"])
    assert result["labels"] == {"kind": "pairs", "names": []}
    assert result["arguments"]["batch_sampler"] == "no_duplicates"


def test_long_texts_are_counted(base: Path, tmp_path: Path) -> None:
    rows = [*TRAIN["pairs"], {"texts": ["school " * 70, "집 " * 80]}]
    config = make_run_config(tmp_path / "work", "embedding", base, rows, epochs=1, max_length=16, **OPTIONS)
    assert "2 texts are longer than 16 tokens, and cut." in train_here(config)["notes"]


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (
            "pairs",
            {"matryoshka_dims": (64, 16)},
            "--matryoshka-dims 64,16: the model's vectors have 32 numbers. Leave out 64.",
        ),
        (
            "pairs",
            {"loss": "CoSENTLoss"},
            "learns from pairs of texts with a score; here are pairs of",
        ),
        ("ranked", {"matryoshka_dims": (16,)}, "rerank has no vectors"),
        ("pairs", {"arguments": {"batch_sampler": "shuffled"}}, "shuffled"),
        ("pairs", {"arguments": {"batch_samples": 1}}, "no field of that name. Did you mean batch_sampler"),
        ("pairs", {"arguments": {"dataloader_drop_last": True}, "batch_size": 64}, "do not fill a batch of 64"),
    ],
)
def test_what_only_the_worker_can_refuse_is_a_bad_parameter(
    kind: str, options: dict[str, Any], words: str, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as caught:
        train_here(run(tmp_path / "work", base, kind, **options))
    assert caught.value.code == "bad_param" and words in caught.value.message


@pytest.mark.parametrize("kind", ["scored", "ranked"])
def test_an_evaluation_set_with_nothing_to_compare_measures_the_loss(kind: str, base: Path, tmp_path: Path) -> None:
    rows = {"scored": EVAL["scored"][:1], "ranked": [{"query": "a", "documents": ["b", "c"], "labels": [0.5, 0.5]}]}
    train = {"scored": TRAIN["scored"], "ranked": [{**row, "labels": [1.0, 0.5, 0.0, 0.0]} for row in TRAIN["ranked"]]}
    task = "rerank" if kind == "ranked" else "embedding"
    result = train_here(make_run_config(tmp_path / "work", task, base, train[kind], rows[kind], epochs=1.0))
    assert set(result["metrics"]) == {"loss"} and result["best_metric"] == result["metrics"]["loss"]
    assert "Not measured: spearman, pearson, because all scores of the evaluation set are the same." in result["notes"]


def test_examples_that_teach_nothing_are_refused(base: Path, tmp_path: Path) -> None:
    rows = [{"texts": ["a", "b"], "score": 0.5}] * 4
    with pytest.raises(UsageError, match="nothing to learn"):
        train_here(make_run_config(tmp_path / "work", "embedding", base, rows))


def test_the_library_is_named_where_it_is_missing(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(WorkerError, match=r"worker,sentence-transformers") as caught:
        train_here(run(tmp_path / "work", base, "pairs"))
    assert caught.value.code == "missing_library"


def test_an_adapter_is_no_model_to_start_from(base: Path, tmp_path: Path) -> None:
    config = run(tmp_path / "work", base, "pairs")
    with pytest.raises(ModelError, match="is an adapter") as caught:
        train_here(replace(config, load=replace(config.load, adapter=str(tmp_path))))
    assert caught.value.code == "adapter_unsupported"


def test_a_model_without_its_weights_is_refused(base: Path, tmp_path: Path) -> None:
    lacking = encoder_base(tmp_path / "lacking")
    kept = {name: torch.from_numpy(value) for name, value in weights(base).items() if "layer.1" not in name}
    from safetensors.torch import save_file

    save_file(kept, lacking / "model.safetensors", metadata={"format": "pt"})
    for kind in ("pairs", "ranked"):
        with pytest.raises(ModelError, match=r"encoder\.layer\.1") as caught:
            train_here(run(tmp_path / kind, lacking, kind))
        assert caught.value.code == "missing_weights"
