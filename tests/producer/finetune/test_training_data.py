"""Examples that cannot be learned from, and options that make no sense: refused before anything is submitted."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import UsageError
from common.training.labels import Labels, align_labels, class_names_of
from common.training.options import TrainingOptions
from producer.finetune.options import FinetuneOptions
from producer.finetune.plan import FinetunePlan, make_finetune_plan
from tests.support.finetune_runs import TUTORIAL, write_reviews
from tests.support.processes import Shell, environment


@pytest.fixture(autouse=True)
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGQUEUE_HOME", str(tmp_path / "home"))


def plan(path: Path, task: str = "text-classification", **options: Any) -> FinetunePlan:
    return make_finetune_plan([str(path)], FinetuneOptions.of(task=task, model="org/model", **options))


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        plan(path, **options)
    return str(caught.value)


def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    path = tmp_path / "reviews.csv"
    path.write_text("review_text,stars\ngood,1\nbad,0\n")
    message = refused(path)
    assert "review_text, stars" in message and "--text-column and --label-column" in message
    assert "needs review_text + rating;" in refused(path, text_column="review_text", label_column="rating")
    found = plan(path, text_column="review_text", label_column="stars")
    assert found.examples.train == [{"text": "good", "label": 1}, {"text": "bad", "label": 0}]


def test_a_row_without_a_label_is_named(tmp_path: Path) -> None:
    path = tmp_path / "reviews.jsonl"
    path.write_text('{"text": "good", "label": 1}\n{"text": "bad"}\n')
    assert "line 2" in refused(path)


def test_an_empty_label_is_named(tmp_path: Path) -> None:
    path = write_reviews(tmp_path / "reviews.csv", [*TUTORIAL, ("so so", "")])
    assert "reviews.csv, row 5: a label must be" in refused(path)


def test_one_class_alone_is_refused(tmp_path: Path) -> None:
    path = write_reviews(tmp_path / "reviews.csv", [("good", 1), ("great", 1)])
    assert "only one class to learn" in refused(path)


def test_a_label_that_occurs_once_is_said(tmp_path: Path) -> None:
    path = write_reviews(tmp_path / "reviews.csv", [*TUTORIAL, ("so so", 2)])
    assert "label '2' occurs once: hardly enough to learn from." in plan(path).examples.notes


def test_empty_texts_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write_reviews(tmp_path / "reviews.csv", [*TUTORIAL, ("", 1), ("  ", 0)])
    found = plan(path).examples
    assert len(found.train) == 4
    assert "2 examples without text: left out." in found.notes


def test_nothing_but_empty_texts_is_refused(tmp_path: Path) -> None:
    path = write_reviews(tmp_path / "reviews.csv", [("", 1), ("", 0)])
    assert "every text is empty" in refused(path)


def test_an_evaluation_file_with_unseen_labels_is_refused(tmp_path: Path) -> None:
    path = write_reviews(tmp_path / "reviews.csv")
    other = write_reviews(tmp_path / "dev.csv", [("good", 1), ("so so", 2)])
    message = refused(path, evaluation=str(other))
    assert "dev.csv" in message and "'2'" in message and "2 labels: 0, 1" in message


def test_a_broken_quote_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "reviews.csv"
    path.write_text('text,label\ngood,1\n"bad,0\nawful,0\n')
    assert "line 3" in refused(path)


def test_every_class_is_held_out_in_its_share(tmp_path: Path) -> None:
    rows = [(f"good {n}", 1) for n in range(30)] + [(f"bad {n}", 0) for n in range(10)]
    found = plan(write_reviews(tmp_path / "reviews.csv", rows), eval_split=0.1).examples
    assert [e["label"] for e in found.evaluation].count(1) == 3
    assert [e["label"] for e in found.evaluation].count(0) == 1
    assert len(found.train) == 36
    again = plan(tmp_path / "reviews.csv", eval_split=0.1).examples
    assert again.evaluation == found.evaluation


def test_a_class_too_small_to_be_held_out_is_said(tmp_path: Path) -> None:
    path = write_reviews(tmp_path / "reviews.csv", [*TUTORIAL, ("so so", 2)])
    assert "label '2' is in no example held out by --eval-split." in plan(path, eval_split=0.1).examples.notes


def test_a_split_that_leaves_no_example_of_any_class_is_refused(tmp_path: Path) -> None:
    path = write_reviews(tmp_path / "reviews.csv", [("good", 1), ("bad", 0)])
    assert "--eval-split 0.1 leaves no example" in refused(path, eval_split=0.1)


def test_a_split_beyond_reason_is_refused(tmp_path: Path) -> None:
    assert "--eval-split: expected a number <= 0.9, found 1.5" in refused(
        write_reviews(tmp_path / "reviews.csv"), eval_split=1.5
    )


@pytest.mark.parametrize(
    ("labels", "kind", "names"),
    [
        (["good", "bad", "good"], "single_label", ("bad", "good")),
        ([10, 9, 2], "single_label", ("2", "9", "10")),
        ([0.5, 1, 2], "regression", ()),
        ([["a"], ["a", "b"], []], "multi_label", ("a", "b")),
        ([True, False, True], "single_label", ("false", "true")),
        ([0.0, 1.0, 0.0], "single_label", ("0", "1")),  # pandas writes whole numbers so beside an empty cell
        ([10.0, 9, 2], "single_label", ("2", "9", "10")),
        ([[10], [9, 2], [2]], "multi_label", ("2", "9", "10")),
        ([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0, 1, 0]], "multi_label", ("LABEL_0", "LABEL_1", "LABEL_2")),
        ([[True, False], [False, True], [True, True]], "multi_label", ("LABEL_0", "LABEL_1")),
        (["[1.0, 0.0]", "[0.0, 1.0]", "[1, 1]"], "multi_label", ("LABEL_0", "LABEL_1")),
    ],
)
def test_labels_are_what_they_look_like(tmp_path: Path, labels: list[Any], kind: str, names: tuple[str, ...]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"t{n}", "label": label}) + "\n" for n, label in enumerate(labels)))
    found = plan(path).examples.labels
    assert found and (found.kind, found.names) == (kind, names)


def test_multi_hot_labels_are_read_by_their_positions(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"text": f"t{n}", "labels": label} for n, label in enumerate(([1.0, 1.0, 0.0], [0.0, 0.0, 0.0]))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = plan(path)
    labels = TrainingOptions.decode(json.loads(json.dumps(found.spec.training))).labels
    assert labels
    assert [class_names_of(labels, example) for example in found.examples.train] == [["LABEL_0", "LABEL_1"], []]
    assert found.examples.notes == [
        "3 labels, each 0 or 1 for each text: LABEL_0, LABEL_1, LABEL_2",
        "label 'LABEL_2' is 0 in every example.",
    ]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([[1.0, 0.0, 0.0], [1.0, 0.0]], "others have another length"),
        ([[0.5, 0.5], [1.0, 0.0]], "found 0.5"),
        ([[1, 0], [1, 0]], "nothing to learn"),
        ([["a"], [None]], "found null"),
    ],
)
def test_lists_that_are_not_labels_are_refused(tmp_path: Path, labels: list[Any], words: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": "t", "label": label}) + "\n" for label in labels))
    assert words in refused(path)


@pytest.mark.parametrize(("label", "words"), [([1, 0, 1], "expected 2 numbers"), ("good", "expected 2 numbers")])
def test_an_evaluation_label_of_another_kind_is_refused(tmp_path: Path, label: Any, words: str) -> None:
    train, other = tmp_path / "train.jsonl", tmp_path / "dev.jsonl"
    train.write_text('{"text": "a", "label": [1, 0]}\n{"text": "b", "label": [1, 1]}\n')
    other.write_text(json.dumps({"text": "a", "label": label}) + "\n")
    message = refused(train, evaluation=str(other))
    assert "dev.jsonl" in message and words in message


def test_classes_keep_the_order_of_the_model() -> None:
    labels = Labels("single_label", ("bad", "good"))
    assert align_labels(labels, ("good", "bad")) == (Labels("single_label", ("good", "bad")), "")
    assert align_labels(labels, ("GOOD", "BAD"))[0].names == ("good", "bad")
    kept, notes = align_labels(labels, ("good", "so-so", "bad"))
    assert kept.names == ("good", "so-so", "bad") and "'so-so'" in notes
    other, notes = align_labels(labels, ("spam", "ham"))
    assert other == labels and "spam, ham" in notes
    bits = Labels("multi_label", ("LABEL_0", "LABEL_1"), multi_hot=True)
    assert align_labels(bits, ("news", "ads"))[0].names == ("news", "ads")


def test_words_and_tags_of_different_number_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tags.jsonl"
    path.write_text('{"tokens": ["a", "b"], "tags": ["O", "B-X"]}\n{"tokens": ["a", "b"], "tags": ["O"]}\n')
    assert "2 words, but 1 tags" in refused(path, task="token-classification")


def test_words_and_tags_of_a_table_are_split(tmp_path: Path) -> None:
    path = tmp_path / "tags.csv"
    path.write_text("tokens,tags\nI live in Paris,O O O B-LOC\n")
    [example] = plan(path, task="token-classification").examples.train
    assert example == {"tokens": ["I", "live", "in", "Paris"], "tags": ["O", "O", "O", "B-LOC"]}


def test_plain_text_is_enough_for_masked_words(tmp_path: Path) -> None:
    path = tmp_path / "domain.txt"
    path.write_text("one\n\ntwo\n")
    assert plan(path, task="fill-mask").examples.train == [{"text": "one"}, {"text": "two"}]


def test_an_unknown_training_argument_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    path = write_reviews(tmp_path / "reviews.csv")
    assert "use --learning-rate" in refused(path, params=["learning_rate=1"])
    assert plan(path, params=["lr_scheduler_type=cosine"]).spec.training["arguments"] == {"lr_scheduler_type": "cosine"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0.0}, "--epochs"),
        ({"batch_size": 0}, "--batch-size"),
        ({"learning_rate": -1.0}, "--learning-rate"),
        ({"lora_dropout": 1.0}, "--lora-dropout"),
        ({"learning_rate": "high"}, "--learning-rate: expected a number, got text, found 'high'"),
        ({"report_to": "wandb"}, "--report-to: expected a list, got text, found 'wandb'"),
        ({"metric_for_best": "f1_makro", "eval_split": 0.5}, "Did you mean f1_macro"),
        ({"metric_for_best": "mse", "eval_split": 0.5}, "not measured for text-classification with 2 labels: 0, 1"),
        ({"early_stopping": 2}, "--eval"),
        ({"lora_r": 4}, "--lora-r requires --lora"),
        ({"task": "summarization"}, "cannot be fine-tuned"),
    ],
)
def test_options_out_of_range_are_named(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    assert words in refused(write_reviews(tmp_path / "reviews.csv"), **options)


@pytest.mark.parametrize(
    ("labels", "options", "words"),
    [
        ([1, 0], {"early_stopping": 2}, "--early-stopping needs something to evaluate"),
        ([1, 0], {"early_stopping": 2, "eval_split": 0.5, "params": ["eval_strategy=no"]}, "leaves no evaluation"),
        ([1, 0], {"params": ["eval_strategy=epoch"]}, "-p eval_strategy=epoch needs something to evaluate"),
        ([1, 0], {"params": ["load_best_model_at_end=true"]}, "-p load_best_model_at_end=true needs"),
        ([1, 0], {"eval_split": 0.5, "params": ["save_strategy=no"]}, "-p load_best_model_at_end=false"),
        ([1, 0], {"params": ["dataloader_drop_last=true"]}, "8 examples do not fill a batch of 16"),
        ([1, 0], {"params": ["dataloader_drop_last=true"], "batch_size": 8, "gpus": 2}, "a batch of 16"),
        ([0.5, 0.25], {"params": ["label_smoothing_factor=0.1"]}, "here is regression"),
        ([[1, 0], [0, 1]], {"params": ["label_smoothing_factor=0.1"]}, "here is 2 labels, each 0 or 1"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    tmp_path: Path, labels: list[Any], options: dict[str, Any], words: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": "t", "label": label}) + "\n" for label in labels * 4))
    assert words in refused(path, **options)


def test_options_that_go_together_are_taken(tmp_path: Path) -> None:
    path = write_reviews(tmp_path / "reviews.csv", TUTORIAL * 4)
    plan(path, params=["dataloader_drop_last=true", "label_smoothing_factor=0.1"])
    plan(path, eval_split=0.5, early_stopping=1, params=["save_strategy=best"])
    plan(path, eval_split=0.5, params=["save_strategy=no", "load_best_model_at_end=false"])


def test_a_model_of_no_job_is_refused(tmp_path: Path) -> None:
    path = write_reviews(tmp_path / "reviews.csv")
    with pytest.raises(UsageError, match="names no job"):
        make_finetune_plan([str(path)], FinetuneOptions(model="job:17"))


def test_options_read_from_a_job_are_checked() -> None:
    training = TrainingOptions(lora=True, arguments={"max_steps": 5})
    assert TrainingOptions.decode(json.loads(json.dumps(training.encode()))) == training
    for wrong in ({"epochs": "3"}, {"batch_size": True}, {"seed": 1.5}, {"arguments": []}):
        with pytest.raises(UsageError, match=f"--{next(iter(wrong)).replace('_', '-')}: expected"):
            TrainingOptions.decode({**training.encode(), **wrong})
    with pytest.raises(UsageError):
        TrainingOptions.decode({**training.encode(), "arguments": {"output_dir": "/etc"}})


def test_the_command_says_one_sentence_and_exits_with_2(tmp_path: Path) -> None:
    shell = Shell(environment(tmp_path, "redis://127.0.0.1:1/0"), tmp_path)
    path = write_reviews(tmp_path / "reviews.csv", [("good", 1), ("great", 1)])
    done = shell.run("finetune", str(path), "-m", "org/model", status=2)
    assert done.stdout == ""
    assert done.stderr == "Error: Every example has the label 1: there is only one class to learn.\n"


@pytest.mark.parametrize("word", ["007", "1_0", "1_000", "+1", ".5", "1.", "١", "nan", "1e999", "0x10"])
def test_a_cell_that_merely_looks_like_a_number_is_a_word(tmp_path: Path, word: str) -> None:
    found = plan(write_reviews(tmp_path / "reviews.csv", [("good", word), ("bad", "other")])).examples
    assert found.train[0]["label"] == word


@pytest.mark.parametrize(("cell", "number"), [("-3", -3), ("0", 0), ("0.5", 0.5), ("-1e-3", -0.001), ("2E2", 200.0)])
def test_a_cell_that_is_a_number_is_one(tmp_path: Path, cell: str, number: float) -> None:
    found = plan(write_reviews(tmp_path / "reviews.csv", [("good", cell), ("bad", "7")])).examples
    assert found.train[0]["label"] == number


def test_what_the_labels_are_is_decided_before_the_split_and_sent_along(tmp_path: Path) -> None:
    path = tmp_path / "tags.jsonl"
    tags = ["O", "O", "O", *(f"B-{number}" for number in range(7))]
    path.write_text("".join(json.dumps({"tokens": ["a"], "tags": [tag]}) + "\n" for tag in tags))
    found = plan(path, task="token-classification", eval_split=0.5)
    assert {tag for e in found.examples.train for tag in e["tags"]} != set(tags)  # some are held out altogether
    labels = TrainingOptions.decode(json.loads(json.dumps(found.spec.training))).labels
    assert labels and labels.kind == "tags" and set(labels.names) == set(tags)


def test_labels_on_the_wire_are_checked() -> None:
    for wrong in ({}, {"kind": "color", "names": [], "warnings": []}, {"kind": "tags", "names": [1], "warnings": []}):
        with pytest.raises(UsageError, match="--labels"):
            TrainingOptions.decode({"labels": wrong})


def test_a_row_with_other_columns_than_the_first_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{"text": "c"}\n')
    message = refused(path, task="text-generation")
    assert "rows.jsonl, row 2" in message and "it has 'text', the first row has 'prompt', 'completion'" in message


def test_prompts_and_plain_texts_of_two_files_are_refused(tmp_path: Path) -> None:
    for name, row in (("a", {"prompt": "a", "completion": "b"}), ("b", {"text": "c"})):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    inputs = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    with pytest.raises(UsageError, match="1 of 2 examples are prompts"):
        make_finetune_plan(inputs, FinetuneOptions(task="text-generation", model="org/model"))
