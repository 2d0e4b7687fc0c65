"""Pairs of texts that are too long: cut as the tokenizers library cuts them, without the time and memory it takes."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import GPT2Tokenizer, RobertaTokenizer

from tests.support.pipeline_reference import assert_same_as_pipeline, run
from tests.support.tiny_models import RecordingMonitor, byte_level_files, classifier, wordpiece
from workers.inference.tasks.pipeline_runner import PipelineRunner
from workers.inference.text.tokenization import encode

LENGTHS = (0, 1, 2, 3, 5, 8, 13, 30)


def _roberta(path: Path) -> Any:
    vocabulary, merges = byte_level_files(path)
    return RobertaTokenizer(vocab=vocabulary, merges=merges)


def _gpt2(path: Path) -> Any:
    vocabulary, merges = byte_level_files(path)
    return GPT2Tokenizer(vocab=vocabulary, merges=merges)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("make", [wordpiece, _roberta, _gpt2])
def test_pairs_are_cut_as_the_tokenizer_cuts_them(make: Callable[[Path], Any], side: str, tmp_path: Path):
    tokenizer = make(tmp_path)
    tokenizer.truncation_side = side
    pairs = [(" the" * first, " cat" * second) for first in LENGTHS for second in LENGTHS]
    for limit in (4, 5, 8, 11, 16, 40):
        expected = tokenizer(pairs, truncation=True, max_length=limit, return_attention_mask=True)
        found = encode(tokenizer, pairs, limit)
        for name in expected:
            assert [row.features[name].tolist() for row in found] == expected[name]
        assert [row.truncated for row in found] == [bool(each.overflowing) for each in expected.encodings]


@pytest.mark.parametrize("truncation", [True, "longest_first", "only_first", "only_second"])
def test_long_pairs_give_what_the_pipeline_gives(truncation: object, tmp_path: Path):
    model = classifier(tmp_path / "model")
    short, long = "the cat sleeps", "the old cat likes the small bird " * 30
    records = [{"text": short, "text_pair": long}, {"text": long, "text_pair": short}]
    if truncation == "only_first":
        del records[0]
    elif truncation == "only_second":
        del records[1]
    else:
        records.append({"text": long, "text_pair": long + "and the dog"})
    assert_same_as_pipeline("text-classification", model, records, truncation=truncation)


@pytest.mark.parametrize("runner", ["forward_batch", "pipeline"])
def test_two_long_texts_take_neither_minutes_nor_gigabytes(runner: str, tmp_path: Path):
    model = classifier(tmp_path / "model")
    long = "the old cat likes the small bird " * 3000
    record = {"text": long, "text_pair": long + "dog"}
    before, begun = psutil.Process().memory_info().rss, time.monotonic()
    if runner == "forward_batch":
        [outcome] = run("text-classification", model, [record])
    else:
        pipeline = PipelineRunner("text-classification", model, "cpu")
        pipeline.encoder = None
        [outcome] = pipeline.run([record], {}, RecordingMonitor())
    assert outcome.truncated
    assert outcome.failure is None
    assert time.monotonic() - begun < 30
    assert psutil.Process().memory_info().rss - before < 500_000_000
