"""Tiny encoder-decoder models with random weights, made on the spot, and what they say when called by hand."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BartTokenizer,
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
    MBart50Tokenizer,
    MBartConfig,
    MBartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

TEXTS = [
    "The weather is good today.",
    "서울의 날씨가 좋습니다.",
    "A house",
    "The old man went to the big river and saw the small boat, the red house and the blue sky.",
    "나는 어제 친구와 함께 시장에서 빨간 사과와 파란 옷을 샀다.",
    "translate this: 오늘 the weather",
    "ok",
    "The house is big. " * 6,
]

#: As the configuration of google-t5/t5-base has them, with shorter texts.
T5_TASKS = {
    "summarization": {
        "early_stopping": True,
        "length_penalty": 2.0,
        "max_length": 12,
        "min_length": 4,
        "no_repeat_ngram_size": 3,
        "num_beams": 4,
        "prefix": "summarize: ",
    },
    "translation_en_to_de": {
        "early_stopping": True,
        "max_length": 14,
        "num_beams": 4,
        "prefix": "translate English to German: ",
    },
    "translation_en_to_fr": {
        "early_stopping": True,
        "max_length": 14,
        "num_beams": 2,
        "prefix": "translate English to French: ",
    },
}


def _pieces(specials: list[str]) -> list[tuple[str, float]]:
    """Return a unigram vocabulary of `TEXTS`: pieces and their log probabilities, special ones first."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=specials, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator([*TEXTS, "summarize: translate English to German French: "], trainer)
    learned = json.loads(tokenizer.to_str())["model"]["vocab"]
    return [(piece, score) for piece, score in learned]


def make_t5(directory: Path, max_length: int = 60, task_params: dict[str, Any] | None = None) -> Path:
    """Save a T5 and its tokenizer."""
    torch.manual_seed(1)
    tokenizer = T5Tokenizer(vocab=_pieces(["<pad>", "</s>", "<unk>"]), extra_ids=0, model_max_length=max_length)
    tokenizer.save_pretrained(directory)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        initializer_factor=4.0,
        task_specific_params=T5_TASKS if task_params is None else task_params,
    )
    T5ForConditionalGeneration(config).eval().save_pretrained(directory)
    return directory


def make_mbart(directory: Path) -> Path:
    """Save an mBART-50 and its tokenizer: codes for fifty languages."""
    torch.manual_seed(2)
    pieces = _pieces(["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer = MBart50Tokenizer(vocab=pieces, src_lang="en_XX", tgt_lang="ko_KR")
    tokenizer.save_pretrained(directory)
    config = MBartConfig(vocab_size=len(tokenizer), decoder_start_token_id=2, **_BART)
    model = MBartForConditionalGeneration(config).eval()
    model.generation_config.update(max_length=12, num_beams=3)
    model.save_pretrained(directory)
    return directory


def make_bart(directory: Path) -> Path:
    """Save a BART, whose positions end at 48, and a tokenizer of single bytes."""
    torch.manual_seed(3)
    letters = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocabulary = {piece: number for number, piece in enumerate([*specials, *sorted(letters)])}
    tokenizer = BartTokenizer(vocab=vocabulary, merges=[])
    tokenizer.save_pretrained(directory)
    config = BartConfig(vocab_size=len(tokenizer), decoder_start_token_id=2, forced_eos_token_id=2, **_BART)
    BartForConditionalGeneration(config).eval().save_pretrained(directory)
    return directory


def make_marian(directory: Path) -> Path:
    """Save a Marian, whose tokenizer is written in Python, and which is told the language before the text."""
    import sentencepiece  # a part of the `worker` extra, so that a test can be skipped without it

    torch.manual_seed(4)
    for side in ("source", "target"):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS),
            model_prefix=str(directory / side),
            vocab_size=90,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(directory / "source.model"))
    learned = [pieces.IdToPiece(number) for number in range(3, len(pieces))]
    vocabulary = ["</s>", "<unk>", *learned, ">>kor<<", ">>fra<<", "<pad>"]
    (directory / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(vocabulary)}))
    tokenizer = MarianTokenizer(
        str(directory / "source.model"), str(directory / "target.model"), str(directory / "vocab.json")
    )
    tokenizer.save_pretrained(directory)
    ids = {"pad_token_id": len(vocabulary) - 1, "eos_token_id": 0, "decoder_start_token_id": len(vocabulary) - 1}
    config = MarianConfig(vocab_size=len(vocabulary), **{**_BART, **ids}, forced_eos_token_id=0)
    model = MarianMTModel(config).eval()
    model.generation_config.update(max_length=16, num_beams=2, bad_words_ids=[[ids["pad_token_id"]]])
    model.save_pretrained(directory)
    return directory


_BART: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 48,
    "init_std": 0.5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


def by_hand(
    directory: Path, texts: Iterable[str], prefix: str = "", src_lang: str | None = None, **generate: Any
) -> list[str]:
    """Return what the model makes of each text, called alone: tokenizer, `generate`, `decode`."""
    model = AutoModelForSeq2SeqLM.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    if src_lang is not None:
        tokenizer.src_lang = src_lang
    answers = []
    for text in texts:
        inputs = tokenizer(prefix + text, return_tensors="pt", truncation=True, max_length=_limit(tokenizer, model))
        ids = model.generate(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], **generate)
        answers.append(tokenizer.decode(ids[0], skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return answers


def _limit(tokenizer: Any, model: Any) -> int:
    return min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 10**6))
