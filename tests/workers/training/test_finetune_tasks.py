"""What training gives, task by task, against a hand-written script; in this very process."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import pipeline

from common.errors import ModelError, UsageError
from tests.support.finetune_runs import TUTORIAL, Listener, base_model, make_run_config, train_here
from tests.support.tiny_models import causal_gpt2, classifier, masked_roberta, tagger

TEXTS = [
    "the cat likes the dog", "a big city in france", "i go to school", "bad news", "good news from the old city",
    "the dog sleeps at home", "what is this", "they eat and we work", "red and blue", "the river in paris is big",
]  # fmt: skip
ROWS = [
    {"text": f"{('bad', 'good')[n % 2]} {TEXTS[n % 10]} and {' '.join(TEXTS[: n % 4])}", "label": n % 2}
    for n in range(48)
]
#: Most of the time of a tiny model goes into evaluations and checkpoints.
SELDOM: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 30}
FROM_START = SELDOM | {"eval_on_start": True}
#: So low that nothing is learned.
FROZEN: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-12}
REVIEWS = [{"text": text, "label": label} for text, label in TUTORIAL * 4]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return base_model(tmp_path / "base")


def hand_written(base: Path, out: Path, train: list[dict[str, Any]], evaluation: list[dict[str, Any]]) -> Any:
    """What a careful user would write, with the defaults of `finetune` spelled out."""
    from datasets import Dataset
    from sklearn.metrics import accuracy_score, f1_score
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    set_seed(42)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, dtype="float32")

    def tokenized(rows: list[dict[str, Any]]) -> Any:
        data = Dataset.from_list(rows).map(lambda batch: tokenizer(batch["text"], truncation=True), batched=True)
        return data.remove_columns("text").rename_column("label", "labels")

    def compute_metrics(found: Any) -> dict[str, float]:
        labels, guessed = found.label_ids, found.predictions.argmax(-1)
        return {"accuracy": accuracy_score(labels, guessed), "f1_macro": f1_score(labels, guessed, average="macro")}

    arguments = TrainingArguments(
        output_dir=str(out), num_train_epochs=3, per_device_train_batch_size=16, per_device_eval_batch_size=16,
        learning_rate=5e-5, warmup_steps=0.1, weight_decay=0.01, seed=42, eval_strategy="epoch",
        save_strategy="epoch", load_best_model_at_end=True, metric_for_best_model="f1_macro", use_cpu=True,
        train_sampling_strategy="group_by_length", report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(
        model, arguments, train_dataset=tokenized(train), eval_dataset=tokenized(evaluation),
        data_collator=DataCollatorWithPadding(tokenizer), processing_class=tokenizer, compute_metrics=compute_metrics,
    )  # fmt: skip
    trainer.train()
    return trainer


def test_defaults_give_the_metrics_and_weights_of_a_hand_written_script(tmp_path: Path) -> None:
    base, train, evaluation = base_model(tmp_path / "base", spread=0.2), ROWS[:36], ROWS[36:]
    run_config = make_run_config(tmp_path / "work", "text-classification", base, train, evaluation)
    result = train_here(run_config)
    trainer = hand_written(base, tmp_path / "script", train, evaluation)
    history = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    expected = trainer.evaluate()
    for name in ("accuracy", "f1_macro", "loss"):
        found = [entry[name] for entry in result["evaluations"]]
        assert found == pytest.approx([entry[f"eval_{name}"] for entry in history], abs=1e-7), name
        assert result["metrics"][name] == pytest.approx(expected[f"eval_{name}"], abs=1e-7), name
    assert len({entry["loss"] for entry in result["evaluations"]}) == 3  # it learns
    assert result["steps"] == trainer.state.global_step == 9
    ours = load_file(run_config.model_dir / "model.safetensors")
    for name, value in trainer.model.state_dict().items():
        if name in ours:
            assert ours[name] == pytest.approx(value.numpy(), abs=1e-7), name


def test_labels_in_words_come_back_in_words(base: Path, tmp_path: Path) -> None:
    words = [{"text": e["text"], "label": "good" if e["label"] else "bad"} for e in REVIEWS]
    run_config = make_run_config(tmp_path / "work", "text-classification", base, words, epochs=1)
    result = train_here(run_config)
    assert result["labels"] == {"kind": "single_label", "names": ["bad", "good"]}
    found = pipeline("text-classification", model=str(run_config.model_dir), device="cpu")("good news")
    assert found[0]["label"] in ("bad", "good")


def test_class_scores_and_worst_examples_are_reported_but_not_published(tmp_path: Path) -> None:
    base = classifier(tmp_path / "base", ("bad", "good"))
    rows = [{"text": text, "label": ("bad", "good")[n % 2]} for n, text in enumerate(TEXTS)]
    run_config = make_run_config(tmp_path / "work", "text-classification", base, rows, rows, batch_size=4, **FROZEN)
    result = train_here(run_config)
    model = pipeline("text-classification", model=str(run_config.model_dir), device="cpu", top_k=None)
    scores = [{one["label"]: one["score"] for one in found} for found in model(TEXTS)]
    guessed = [max(found, key=found.__getitem__) for found in scores]
    wrong = [n for n, row in enumerate(rows) if guessed[n] != row["label"]]
    wrong.sort(key=lambda n: scores[n][rows[n]["label"]])
    told = [(one["text"], one["label"], one["predicted"]) for one in result["worst"]]
    assert told == [(TEXTS[n], rows[n]["label"], guessed[n]) for n in wrong]
    assert wrong
    for one in result["classes"]:
        right = sum(found == row["label"] == one["name"] for found, row in zip(guessed, rows, strict=True))
        assert one["support"] == 5
        assert one["recall"] == pytest.approx(right / 5)
        assert one["precision"] == pytest.approx(right / max(guessed.count(one["name"]), 1))
    assert "worst" not in json.loads((run_config.model_dir / "model.json").read_text())
    assert result["arguments"]["train_sampling_strategy"] == "group_by_length"


def test_a_new_head_is_said_once(base: Path, tmp_path: Path) -> None:
    listener = Listener()
    run_config = make_run_config(tmp_path / "work", "text-classification", base, REVIEWS, epochs=1, batch_size=8)
    result = train_here(run_config, listener)
    assert [note for note in result["notes"] if "head" in note] == result["notes"]
    assert result["notes"] == ["The head (classifier) is newly initialized: the base model has none for this task."]


def test_numbers_with_a_fraction_are_learned_as_numbers(base: Path, tmp_path: Path) -> None:
    rows = [{"text": text, "label": number / 4} for number, text in enumerate(TEXTS)]
    run_config = make_run_config(
        tmp_path / "work", "text-classification", base, rows, rows, epochs=60, learning_rate=3e-3, batch_size=10,
        arguments=FROM_START,
    )  # fmt: skip
    result = train_here(run_config)
    assert result["labels"] == {"kind": "regression", "names": []}
    assert result["metrics"]["mse"] < 0.2 < result["evaluations"][0]["mse"]
    assert json.loads((run_config.model_dir / "config.json").read_text())["problem_type"] == "regression"


def test_lists_of_labels_are_learned_each_for_itself(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base", spread=0.2)
    rows = [
        {"text": text, "label": [name for name in ("city", "news", "the") if name in text.split()]} for text in TEXTS
    ]
    run_config = make_run_config(
        tmp_path / "work", "text-classification", base, rows, rows, epochs=60, learning_rate=5e-3, batch_size=10,
        arguments=SELDOM,
    )  # fmt: skip
    result = train_here(run_config)
    assert result["labels"] == {"kind": "multi_label", "names": ["city", "news", "the"]}
    assert result["metrics"]["accuracy"] > 0.8


def test_multi_hot_labels_are_learned_by_their_positions(tmp_path: Path) -> None:
    names = ("city", "news", "the")
    base = base_model(tmp_path / "base", spread=0.2)
    rows = [{"text": text, "label": [float(name in text.split()) for name in names]} for text in TEXTS]
    run_config = make_run_config(
        tmp_path / "work", "text-classification", base, rows, rows, epochs=60, learning_rate=5e-3, batch_size=10,
        arguments=SELDOM,
    )  # fmt: skip
    result = train_here(run_config)
    assert result["labels"] == {"kind": "multi_label", "names": ["LABEL_0", "LABEL_1", "LABEL_2"]}
    assert result["metrics"]["accuracy"] > 0.8
    found = pipeline("text-classification", model=str(run_config.model_dir), device="cpu")("bad news")
    assert found[0]["label"] == "LABEL_1"


@pytest.mark.parametrize("shown", [("so-so", "good", "bad"), ("so-so", "bad")])
def test_a_classifier_trained_further_keeps_its_classes(shown: tuple[str, ...], tmp_path: Path) -> None:
    base = classifier(tmp_path / "base", ("so-so", "good", "bad"))
    rows = [{"text": text, "label": shown[n % len(shown)]} for n, text in enumerate(TEXTS)]
    run_config = make_run_config(tmp_path / "work", "text-classification", base, rows, **FROZEN)
    result = train_here(run_config)
    assert result["labels"]["names"] == ["so-so", "good", "bad"]
    before, after = (
        pipeline("text-classification", model=str(path), device="cpu", top_k=None)(TEXTS)
        for path in (base, run_config.model_dir)
    )
    for one, other in zip(before, after, strict=True):
        assert {e["label"]: e["score"] for e in one} == pytest.approx({e["label"]: e["score"] for e in other})


def test_classes_without_names_keep_their_order_too(tmp_path: Path) -> None:
    names = tuple(f"LABEL_{number}" for number in range(12))  # as words, LABEL_10 comes before LABEL_2
    base = classifier(tmp_path / "base", names)
    rows = [{"text": text, "label": names[number % 12]} for number, text in enumerate(TEXTS * 3)]
    result = train_here(make_run_config(tmp_path / "work", "text-classification", base, rows, **FROZEN))
    assert result["labels"]["names"] == list(names)
    assert not any("classes" in note for note in result["notes"])


def test_a_tagger_trained_further_keeps_its_tags(tmp_path: Path) -> None:
    base = tagger(tmp_path / "base")
    rows = [{"tokens": ["i", "in", "paris"], "tags": ["B-PER", "O", "B-LOC"]}] * 4
    run_config = make_run_config(tmp_path / "work", "token-classification", base, rows, **FROZEN)
    result = train_here(run_config)
    assert result["labels"]["names"] == ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    assert not any("head" in note for note in result["notes"])
    before, after = (
        pipeline("token-classification", model=str(path), device="cpu")(TEXTS) for path in (base, run_config.model_dir)
    )
    assert [[e["entity"] for e in one] for one in after] == [[e["entity"] for e in one] for one in before]


def test_other_classes_than_those_of_the_base_model_are_said(tmp_path: Path) -> None:
    base = classifier(tmp_path / "base", ("ham", "spam"))
    notes = train_here(make_run_config(tmp_path / "work", "text-classification", base, REVIEWS, **FROZEN))["notes"]
    assert notes[:1] == ["The base model has other classes (ham, spam): those of the examples replace them."]


def test_tags_are_learned_for_words_of_several_pieces(base: Path, tmp_path: Path) -> None:
    rows = [{"tokens": [*text.split(), "Parisian"], "tags": [*["O"] * len(text.split()), "B-LOC"]} for text in TEXTS]
    run_config = make_run_config(
        tmp_path / "work", "token-classification", base, rows, rows, epochs=60, learning_rate=5e-3, batch_size=10,
        arguments=SELDOM,
    )  # fmt: skip
    result = train_here(run_config)
    assert result["labels"] == {"kind": "tags", "names": ["O", "B-LOC"]}
    assert result["metrics"]["f1"] == 1.0
    tagger = pipeline("token-classification", model=str(run_config.model_dir), device="cpu")
    assert {entity["entity"] for entity in tagger("i go to Parisian")} == {"B-LOC"}


@pytest.mark.parametrize("make", [base_model, masked_roberta])
def test_masked_words_are_learned_and_long_texts_lose_nothing(make: Any, tmp_path: Path) -> None:
    base = make(tmp_path / "base")
    rows = [{"text": text} for text in [*TEXTS * 3, "the old cat likes the dog " * 40]]
    run_config = make_run_config(
        tmp_path / "work", "fill-mask", base, rows, rows[:10], epochs=8, learning_rate=3e-3, batch_size=8,
        arguments=FROM_START,
    )  # fmt: skip
    result = train_here(run_config)
    assert result["evaluations"][-1]["loss"] < result["evaluations"][0]["loss"]
    assert result["metrics"]["perplexity"] > 1
    assert any("1 text is longer than" in note and "several pieces" in note for note in result["notes"])


def test_text_is_learned_to_its_end(tmp_path: Path) -> None:
    base = causal_gpt2(tmp_path / "base", chat=False)
    rows = [{"text": text} for text in TEXTS]
    run_config = make_run_config(
        tmp_path / "work", "text-generation", base, rows, rows, epochs=40, learning_rate=3e-3, batch_size=10,
        arguments=FROM_START,
    )  # fmt: skip
    result = train_here(run_config)
    assert result["metrics"]["perplexity"] < result["evaluations"][0]["perplexity"] / 3
    assert json.loads((run_config.model_dir / "config.json").read_text())["use_cache"] is True  # as in the base


def test_only_the_text_after_a_prompt_is_learned(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = causal_gpt2(tmp_path / "base", chat=False)
    answers = {"what is red? ": "blue", "what is big? ": "small", "what is good? ": "bad"}
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in answers.items()]
    run_config = make_run_config(
        tmp_path / "work", "text-generation", base, rows, epochs=80, learning_rate=5e-3, batch_size=3
    )
    train_here(run_config)
    model = AutoModelForCausalLM.from_pretrained(run_config.model_dir)
    tokenizer = AutoTokenizer.from_pretrained(run_config.model_dir)
    for prompt, answer in answers.items():
        ids = tokenizer(prompt, return_tensors="pt")
        found = model.generate(**ids, max_new_tokens=8, do_sample=False)[0][ids["input_ids"].shape[1] :]
        assert tokenizer.decode(found, skip_special_tokens=True) == answer  # and ends there


def test_lora_leaves_one_whole_model(base: Path, tmp_path: Path) -> None:
    run_config = make_run_config(
        tmp_path / "work", "text-classification", base, REVIEWS, REVIEWS[:4], epochs=30, lora=True, learning_rate=2e-2,
        arguments=FROM_START,
    )  # fmt: skip
    result = train_here(run_config)
    names = {path.name for path in run_config.model_dir.iterdir()}
    assert "adapter_config.json" not in names and "model.safetensors" in names
    weights = load_file(run_config.model_dir / "model.safetensors")
    assert not any("lora" in name for name in weights)
    before = load_file(base / "model.safetensors")
    changed = [n for n, v in weights.items() if n in before and "query.weight" in n and (v != before[n]).any()]
    assert changed
    assert result["metrics"]["loss"] < result["evaluations"][0]["loss"]


@pytest.mark.parametrize(
    ("make", "task"),
    [
        (masked_roberta, "text-classification"),
        (lambda path: causal_gpt2(path, pad=True, chat=False), "token-classification"),
    ],
)
def test_lora_trains_a_head_of_any_name(make: Any, task: str, tmp_path: Path) -> None:
    rows = [{"tokens": ["i", "go"], "tags": ["O", "B-X"]}] * 4 if task == "token-classification" else REVIEWS
    base = make(tmp_path / "base")
    one, other = (
        make_run_config(tmp_path / str(rate), task, base, rows, epochs=4, batch_size=4, lora=True, learning_rate=rate)
        for rate in (1e-9, 1e-2)
    )
    for run_config in (one, other):
        train_here(run_config)
    before, after = (load_file(run_config.model_dir / "model.safetensors") for run_config in (one, other))
    assert before.keys() == after.keys()
    changed = {name for name, value in after.items() if np.abs(value - before[name]).max() > 1e-4}
    heads = {name for name in after if name.startswith(("classifier", "score"))}
    assert heads and heads <= changed
    assert changed - heads


def test_texts_that_are_too_long_are_counted(base: Path, tmp_path: Path) -> None:
    rows = [*REVIEWS, {"text": "good news " * 60, "label": 1}]
    result = train_here(make_run_config(tmp_path / "work", "text-classification", base, rows, epochs=1))
    assert any(note.startswith("1 text is longer than 64 tokens, and cut") for note in result["notes"])


def test_a_training_of_one_step_learns_without_a_warm_up(base: Path, tmp_path: Path) -> None:
    run_config = make_run_config(tmp_path / "work", "text-classification", base, REVIEWS, epochs=1, learning_rate=1e-2)
    result = train_here(run_config)
    assert (result["steps"], result["curve"][0][2]) == (1, 1e-2)
    assert any("too short for a warm-up" in note for note in result["notes"])
    before, after = load_file(base / "model.safetensors"), load_file(run_config.model_dir / "model.safetensors")
    assert any((after[name] != value).any() for name, value in before.items() if "query.weight" in name)


def test_a_warm_up_longer_than_the_training_is_said(base: Path, tmp_path: Path) -> None:
    run_config = make_run_config(tmp_path / "work", "text-classification", base, REVIEWS, epochs=2, warmup=100)
    notes = train_here(run_config)["notes"]
    assert any(
        "warm-up of 100 steps" in note and "(2 steps)" in note and "never reaches 5e-05" in note for note in notes
    )


def test_training_ends_early_when_nothing_gets_better(base: Path, tmp_path: Path) -> None:
    run_config = make_run_config(
        tmp_path / "work", "text-classification", base, REVIEWS, REVIEWS, epochs=50, early_stopping=2,
        learning_rate=1e-12,
    )  # fmt: skip
    result = train_here(run_config)
    assert result["epochs"] == 3.0


def test_a_value_that_transformers_refuses_fails_the_job(base: Path, tmp_path: Path) -> None:
    run_config = make_run_config(
        tmp_path / "work", "text-classification", base, REVIEWS, arguments={"lr_scheduler_type": "zigzag"}
    )
    with pytest.raises(ModelError, match="zigzag"):
        train_here(run_config)


def test_options_that_do_not_fit_a_hub_dataset_are_refused_by_the_worker(base: Path, tmp_path: Path) -> None:
    arguments = {"dataloader_drop_last": True}
    with pytest.raises(ModelError, match="do not fill a batch"):
        train_here(make_run_config(tmp_path / "work", "text-classification", base, REVIEWS[:8], arguments=arguments))


def test_float16_on_the_cpu_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="needs a GPU"):
        train_here(make_run_config(tmp_path / "work", "text-classification", base, REVIEWS, dtype="float16"))


def test_bfloat16_is_used_when_requested(base: Path, tmp_path: Path) -> None:
    result = train_here(
        make_run_config(tmp_path / "work", "text-classification", base, REVIEWS, epochs=1, dtype="bfloat16")
    )
    assert result["arguments"]["bf16"] is True


def test_a_hub_dataset_of_one_class_is_refused_by_the_worker_too(base: Path, tmp_path: Path) -> None:
    rows = [{"text": text, "label": 1} for text in TEXTS]
    with pytest.raises(UsageError, match="only one class to learn"):
        train_here(make_run_config(tmp_path / "work", "text-classification", base, rows))
