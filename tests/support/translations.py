"""Generated training data for embedding models and rerankers: English words, and Korean ones that stand for them."""

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BertModel, BertTokenizer

from tests.support.tiny_models import VOCABULARY, bert_config

#: Each is one token of `encoder_base`.
KOREAN = {
    "school": "학교", "home": "집", "seoul": "서울", "i": "나는", "good": "좋", "go": "간", "news": "오늘",
    "river": "날씨",
}  # fmt: skip
Words = tuple[str, ...]


def encoder_base(directory: Path) -> Path:
    """Save a tiny BERT without a head whose tokenizer keeps Korean syllables whole."""
    vocabulary = {piece: number for number, piece in enumerate(VOCABULARY)}
    BertTokenizer(vocab=vocabulary, do_lower_case=False, model_max_length=64).save_pretrained(directory)
    torch.manual_seed(1)
    BertModel(bert_config()).save_pretrained(directory)
    return directory


class Translations:
    """Sentences of three words: `known` to learn from, `unseen` to evaluate with."""

    def __init__(self) -> None:
        self._chance = random.Random(3)
        combinations = list(itertools.combinations(KOREAN, 3))
        self._chance.shuffle(combinations)
        self.known, self.unseen = combinations[:44], combinations[44:]

    def pairs(self, sentences: Sequence[Words]) -> list[dict[str, Any]]:
        """A sentence and its translation."""
        return [{"texts": [self._english(words), self._korean(words)]} for words in sentences]

    def triplets(self, sentences: Sequence[Words]) -> list[dict[str, Any]]:
        """A sentence, its translation, and another."""
        return [
            {"texts": [self._english(words), self._korean(words), self._korean(self._other(words))]}
            for words in sentences
        ]

    def scored(self, sentences: Sequence[Words]) -> list[dict[str, Any]]:
        """A sentence and a translation, with the share of words that they have in common."""
        found = []
        for words in sentences:
            other = self._chance.choice([words, self._other(words)])
            score = len(set(words) & set(other)) / 3
            found.append({"texts": [self._english(words), self._korean(other)], "score": score})
        return found

    def ranked(self, sentences: Sequence[Words]) -> list[dict[str, Any]]:
        """A sentence and four translations, of which those that are "good" fit."""
        found = []
        for words in sentences:
            documents = [self._korean(self._other(words)) for _ in range(4)]
            labels = [float(KOREAN["good"] in document) for document in documents]
            found.append({"query": self._english(words), "documents": documents, "labels": labels})
        return found

    def _other(self, words: Words) -> Words:
        return self._chance.choice([one for one in (*self.known, *self.unseen) if one != words])

    def _english(self, words: Words) -> str:
        return " ".join(self._chance.sample(words, len(words)))

    def _korean(self, words: Words) -> str:
        return " ".join(KOREAN[word] for word in self._chance.sample(words, len(words)))
