"""Fine-tuning sees the tokens that inference sees, whatever the tokenizer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import normalizers
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    pipeline,
)

from common.training.labels import Labels
from tests.support.finetune_runs import make_run_config, train_here
from tests.support.tiny_models import SMALL
from tests.support.tiny_tokenizers import TOKENIZERS, byte_level, unigram
from workers.training.trainer.metrics import IGNORE_INDEX
from workers.training.trainer.recipes import RECIPES, first_token_words, join_words

TEXTS = ("Berlin is old", "the river of Seoul", "a dog, and  a cat!", "Dora sleeps 😀", "x")
PLACES, PEOPLE = ("Seoul", "Berlin", "Paris"), ("Emil", "Dora")
SENTENCES = [
    [*before, name, *after]
    for name in (*PLACES, *PEOPLE)
    for before in ([], ["the", "house", "of"], ["a", "dog", "and"])
    for after in (["is", "old", "."], ["and", "a", "cat"])
]


def tag(word: str) -> str:
    return "B-LOC" if word in PLACES else "B-PER" if word in PEOPLE else "O"


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return TOKENIZERS[request.param](tmp_path / "tokenizer")


def base_of(tokenizer: Any, directory: Path) -> Path:
    torch.manual_seed(1)
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=0.2, **SMALL)
    BertModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def test_a_tagger_is_as_good_at_inference_as_its_training_says(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"tokens": words, "tags": [tag(word) for word in words]} for words in SENTENCES]
    run_config = make_run_config(
        tmp_path / "work", "token-classification", base_of(tokenizer, tmp_path / "base"), rows, rows,
        epochs=15, learning_rate=5e-3, batch_size=10,
        arguments={"save_strategy": "no", "load_best_model_at_end": False},
    )  # fmt: skip
    told = train_here(run_config)["metrics"]["accuracy"]
    tagger = pipeline("token-classification", model=str(run_config.model_dir), device="cpu", ignore_labels=[])
    right = total = 0
    for words in SENTENCES:
        text, starts = join_words(words)
        tokens = tagger(text)
        firsts = first_token_words(text, starts, [(token["start"], token["end"]) for token in tokens])
        found = [
            (token["entity"], tag(words[word])) for word, token in zip(firsts, tokens, strict=True) if word is not None
        ]
        right, total = right + sum(one == other for one, other in found), total + len(found)
    assert total == sum(map(len, SENTENCES))
    assert right / total == pytest.approx(told)
    assert told > 0.9


def test_each_recipe_has_the_tokens_of_inference(tokenizer: Any) -> None:
    labels = {
        "text-classification": Labels("single_label", ("a", "b")),
        "token-classification": Labels("tags", ("O", "X")),
    }
    for task, recipe in RECIPES.items():
        examples = [
            {"tokens": text.split(" "), "tags": ["O"] * len(text.split(" "))}
            if task == "token-classification" else {"text": text, "label": "a"}
            for text in TEXTS
        ]  # fmt: skip
        found = recipe.encode(tokenizer, examples, labels.get(task, Labels("")), 64).columns["input_ids"]
        expected = [tokenizer(text)["input_ids"] for text in TEXTS]
        if task == "text-generation":  # and learns where a text ends
            end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
            expected = [ids if ids[-1:] == end else ids + end for ids in expected]
        assert found == expected, task


def test_texts_and_pairs_in_one_set_are_cut_as_one_by_one(tokenizer: Any) -> None:
    examples = [{"text": "a dog", "label": "a"}, {"text": "a dog", "text_pair": "a cat", "label": "b"}]
    columns = RECIPES["text-classification"].encode(tokenizer, examples, Labels("single_label", ("a", "b")), 64).columns
    assert columns["input_ids"] == [tokenizer("a dog")["input_ids"], tokenizer("a dog", "a cat")["input_ids"]]


def test_what_follows_a_prompt_begins_where_inference_begins(tokenizer: Any) -> None:
    pairs = [("Berlin is", " old"), ("the house ", "of Emil"), ("a c", "at"), ("a dog", "")]
    examples = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
    columns = RECIPES["text-generation"].encode(tokenizer, examples, Labels(""), 64).columns
    for (prompt, completion), ids, targets in zip(pairs, columns["input_ids"], columns["labels"], strict=True):
        prompt_ids = tokenizer(prompt)["input_ids"]
        assert ids[: len(prompt_ids)] == prompt_ids and targets[: len(prompt_ids)] == [IGNORE_INDEX] * len(prompt_ids)
        assert targets[len(prompt_ids) :] == ids[len(prompt_ids) :]
        whole = tokenizer(prompt + completion)["input_ids"]
        if whole[: len(prompt_ids)] == prompt_ids:
            assert ids[: len(whole)] == whole


def test_a_causal_model_has_the_loss_that_it_will_have(tmp_path: Path) -> None:
    tokenizer = byte_level("<s> $A")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
        initializer_range=0.2, **SMALL,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    rows = [{"text": "Berlin is old"}]
    run_config = make_run_config(
        tmp_path / "work", "text-generation", tmp_path / "base", rows, rows, epochs=1, learning_rate=1e-12
    )
    ids = torch.tensor([[*tokenizer("Berlin is old")["input_ids"], tokenizer.eos_token_id]])
    assert ids[0, 0] == tokenizer.bos_token_id
    expected = model(input_ids=ids, labels=ids).loss.item()
    assert train_here(run_config)["metrics"]["loss"] == pytest.approx(expected, rel=1e-4)


def test_a_long_text_begins_with_the_same_token_in_each_piece() -> None:
    tokenizer = byte_level("<s> $A")
    columns = RECIPES["text-generation"].encode(tokenizer, [{"text": "a dog " * 30}], Labels(""), 16).columns
    assert len(columns["input_ids"]) > 2
    assert {ids[0] for ids in columns["input_ids"]} == {tokenizer.bos_token_id}
    assert max(map(len, columns["input_ids"])) == 16
    body = [token for ids in columns["input_ids"] for token in ids[1:]]
    assert body == [*tokenizer("a dog " * 30)["input_ids"][1:], tokenizer.eos_token_id]


def test_of_a_long_pair_the_beginning_of_the_prompt_goes_first() -> None:
    tokenizer, completion = unigram("<s> $A"), "Berlin is old"
    learned = tokenizer(completion, add_special_tokens=False)["input_ids"]
    rows = [{"prompt": "a dog " * 30, "completion": completion}, {"prompt": "a", "completion": "a dog " * 30}]
    found = RECIPES["text-generation"].encode(tokenizer, rows, Labels(""), 20)
    first, second = found.columns["input_ids"]
    assert len(first) == len(second) == 20
    assert first[0] == tokenizer.bos_token_id and first[-len(learned) - 1 :] == [*learned, tokenizer.eos_token_id]
    assert found.columns["labels"][1] == second  # no room for its prompt
    assert dict(found.truncated) == {
        "cut at the beginning of their prompts": 1, "cut at the end of their completions": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["I", "go", "to", "Berlin", "."], "I go to Berlin ."),
        (["我", "住", "在", "北京", "。"], "我住在北京。"),
        (["나는", "서울에", "산다"], "나는 서울에 산다"),
        (["我", "爱", "Python"], "我爱 Python"),
        (["กรุงเทพ", "สวย"], "กรุงเทพสวย"),
    ],
)
def test_words_are_joined_as_their_script_is_written(words: list[str], text: str) -> None:
    joined, starts = join_words(words)
    assert joined == text
    assert [text[start : start + len(word)] for start, word in zip(starts, words, strict=True)] == words


def test_a_token_over_two_words_has_the_tag_of_the_first() -> None:
    assert first_token_words("北京是", [0, 1, 2], [(0, 0), (0, 2), (2, 3), (2, 3), (0, 0)]) == [None, 0, 2, None, None]
    assert first_token_words("a  b", [0, 3], [(0, 1), (1, 2), (1, 4)]) == [0, None, 1]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_text_of_no_token_is_neither_learned_nor_judged(batch_size: int, tmp_path: Path) -> None:
    tokenizer = byte_level("$A")
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    rows = [{"text": text, "label": label} for text, label in (("a dog", "b"), ("\u200b", "a"), ("a cat", "a"))]
    run_config = make_run_config(
        tmp_path / "work", "text-classification", tmp_path / "base", rows, rows, epochs=1, batch_size=batch_size
    )
    result = train_here(run_config)
    assert result["examples"] == {"train": 2, "eval": 2}
    assert "2 texts without any token: left out." in result["notes"]
    assert {row["text"] for row in result["worst"]} <= {"a dog", "a cat"}


def test_text_of_no_token_at_all_is_refused(tmp_path: Path) -> None:
    from common.errors import UsageError
    from tests.support.finetune_runs import base_model

    rows = [{"tokens": ["\u200b"], "tags": ["O"]}, {"tokens": ["\u200b"], "tags": ["X"]}]
    run_config = make_run_config(tmp_path / "work", "token-classification", base_model(tmp_path / "base"), rows)
    with pytest.raises(UsageError, match="finds no token in any text"):
        train_here(run_config)
