"""Pieces of long texts: their places are exact, and their vectors are those that sentence-transformers gives there."""

import itertools
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

from common.errors import ModelError
from common.payloads.codec import decode_outcomes, encode_outcomes, iter_outcomes
from common.records import Outcome
from tests.support.embeddings import embedding_type, minilm_directory
from tests.support.tiny_models import RecordingMonitor, causal_gpt2
from workers.inference.embedding.pieces import Split, cut_pieces
from workers.inference.tasks.embedding import EmbeddingRunner
from workers.inference.text.tokenization import encode

WORDS = ["the", "model", "Quickly", "reads", "incomprehensibilities", "café", "2024", "U.S.", "naïve,", "\n"]
WORDS += ["모델은", "문장을", "읽고", "벡터로", "바꾼다.", "東京", "😀", "👩\u200d👩\u200d👧"]


def mixed(words: int, seed: int = 0) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


TEXTS = ["short", mixed(150), "  spaces around \n", mixed(400, 1)]
TEXTS += ["한국어" * 200, "👩\u200d👩\u200d👧" * 90, "word " * 97]


@pytest.fixture(scope="module")
def minilm() -> EmbeddingRunner:
    return EmbeddingRunner("embedding", minilm_directory(), "cpu")


def run(runner: EmbeddingRunner, texts: list, **params) -> list[Outcome]:
    return runner.run(texts, params, RecordingMonitor())


def places(outcome: Outcome) -> list[tuple[int, int]]:
    return [(piece["start"], piece["end"]) for piece in outcome.output]


@pytest.mark.parametrize("params", [{"split_tokens": 32, "split_overlap": 8}, {"split_tokens": 16}])
def test_vectors_are_those_of_the_places(minilm, params):
    outcomes = run(minilm, TEXTS, **params)
    slices = [text[start:end] for text, found in zip(TEXTS, outcomes, strict=True) for start, end in places(found)]
    expected = SentenceTransformer(str(minilm_directory()), device="cpu").encode(slices, batch_size=1)
    found = [piece["vector"] for outcome in outcomes for piece in outcome.output]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert len(found) > 40


def test_pieces_cover_the_text_and_overlap(minilm):
    tokenizer = AutoTokenizer.from_pretrained(minilm_directory())
    for text, outcome in zip(TEXTS, run(minilm, TEXTS, split_tokens=32, split_overlap=8), strict=True):
        found = places(outcome)
        assert all(len(tokenizer(text[start:end], add_special_tokens=False)["input_ids"]) <= 32 for start, end in found)
        assert all(text[before:after].strip() == "" for before, after in ((0, found[0][0]), (found[-1][1], len(text))))
        for (start, end), (following, last) in itertools.pairwise(found):
            assert start < following < end < last
            shared = tokenizer(text[following:end], add_special_tokens=False)["input_ids"]
            assert 8 <= len(shared) < 32
        assert not outcome.truncated


def test_without_an_overlap_nothing_is_lost_or_twice(minilm):
    [outcome] = run(minilm, [TEXTS[3]], split_tokens=20)
    found = [TEXTS[3][start:end] for start, end in places(outcome)]
    assert "".join("".join(found).split()) == "".join(TEXTS[3].split())


def test_a_short_text_is_one_piece_with_the_vector_of_the_text(minilm):
    texts = ["short", "  spaces around \n", mixed(10)]
    for text, split, whole in zip(texts, run(minilm, texts, split_tokens=200), run(minilm, texts), strict=True):
        assert places(split) == [(0, len(text))]
        np.testing.assert_allclose(split.output[0]["vector"], whole.output, atol=1e-6)


def test_windows_are_counted_in_tokens_and_end_at_words():
    tokenizer = AutoTokenizer.from_pretrained(minilm_directory())

    def cut(text: str, tokens: int, overlap: int) -> list[str]:
        [row] = encode(tokenizer, [text], None, special=False)
        return [text[p.start : p.end] for p in cut_pieces(0, text, row, Split(tokens, overlap))]

    assert cut("one two three four five six seven", 3, 1) == ["one two three", "three four five", "five six seven"]
    assert cut("one two three four five", 2, 0) == ["one two", "three four", "five"]
    [parts] = encode(tokenizer, ["incomprehensibilities"], None, special=False)
    assert len(parts) > 4
    assert cut("one two incomprehensibilities three", len(parts) + 1, 0) == ["one two", "incomprehensibilities three"]
    assert "".join(cut("incomprehensibilities", 2, 0)) == "incomprehensibilities"
    assert cut("incomprehensibilities", 3, 2)[0] + "…" != "…"


def test_the_prompt_is_before_each_piece_and_not_counted(tmp_path):
    directory = Path(shutil.copytree(minilm_directory(), tmp_path / "model"))
    config = directory / "config_sentence_transformers.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prompts": {"query": "search query: "}}))
    runner, text = EmbeddingRunner("embedding", directory, "cpu"), mixed(60)
    [outcome] = run(runner, [text], split_tokens=24, split_overlap=4, prompt_name="query")
    [plain] = run(runner, [text], split_tokens=24, split_overlap=4)
    assert places(outcome) == places(plain)
    slices = [text[start:end] for start, end in places(outcome)]
    expected = SentenceTransformer(str(directory), device="cpu").encode(slices, prompt_name="query", batch_size=1)
    np.testing.assert_allclose([piece["vector"] for piece in outcome.output], expected, atol=1e-4)


def test_special_tokens_and_the_prompt_fit_into_the_model_too(minilm):
    text = "word " * 600
    [outcome] = run(minilm, [text], split_tokens=256, split_overlap=32)  # 256 is the model's limit
    assert not outcome.truncated
    assert [len(text[start:end].split()) for start, end in places(outcome)] == [254, 254, 156]
    [prompted] = run(minilm, [text], split_tokens=256, split_overlap=32, prompt="a prompt : ")
    assert not prompted.truncated
    assert next(len(text[start:end].split()) for start, end in places(prompted)) == 251


def test_a_byte_level_tokenizer_gives_whole_characters(tmp_path):
    runner = EmbeddingRunner("embedding", causal_gpt2(tmp_path, pad=True, chat=False), "cpu")
    text = "한국어 😀 naïve 👩\u200d👩\u200d👧 모델은 文字 " * 4
    [outcome] = run(runner, [text], split_tokens=8, split_overlap=2)
    found = places(outcome)
    assert found[0][0] == 0 and found[-1][1] >= len(text.rstrip())
    assert all(following <= end for (_, end), (following, _) in itertools.pairwise(found))
    pieces = SentenceTransformer(str(tmp_path), device="cpu").encode(
        [text[start:end] for start, end in found], batch_size=1, normalize_embeddings=True
    )
    np.testing.assert_allclose([piece["vector"] for piece in outcome.output], pieces, atol=1e-4)


def test_pieces_of_all_records_share_batches_within_the_budget(minilm):
    monitor = RecordingMonitor()
    tokens, minilm.budget.tokens = minilm.budget.tokens, 512
    try:
        outcomes = minilm.run(["word " * 3000, "short", "word " * 90], {"split_tokens": 30}, monitor)
    finally:
        minilm.budget.tokens = tokens
    assert [len(outcome.output) for outcome in outcomes] == [100, 1, 3]
    assert len(monitor.batches) >= 100 * 32 // 512
    assert any(set(batch) >= {0, 2} for batch in monitor.batches)


def test_bad_records_fail_alone(minilm):
    outcomes = run(minilm, ["dog", " \n", 7, "half \ud83d", "word " * 20], split_tokens=8)
    assert [o.failure and o.failure.code for o in outcomes] == [None, "empty_text", "wrong_type", "bad_text", None]
    assert len(outcomes[4].output) == 3


def test_pieces_pass_through_a_payload(minilm):
    params = {"split_tokens": 8, "truncate_dim": 16}
    outcomes = run(minilm, ["word " * 20, ""], **params)
    kind = minilm.output_type(params)
    assert kind == embedding_type(16, **params)
    table = decode_outcomes(encode_outcomes([0, 1], [0, 1], outcomes, kind))
    (_, _, first), (_, _, second) = iter_outcomes(table, arrays=True)
    assert places(first) == places(outcomes[0]) and second.failure
    for ours, theirs in zip(first.output, outcomes[0].output, strict=True):
        np.testing.assert_array_equal(ours["vector"], theirs["vector"])


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"split_tokens": 257}, "at most 256, the number of tokens that this model takes"),
        ({"split_tokens": 256, "split_overlap": 128}, "at most 127: of the 256 tokens.*2 are special ones"),
        ({"split_tokens": 200, "split_overlap": 90, "prompt": "word " * 150}, "split_overlap must be at most 5"),
        ({"split_tokens": 8, "split_overlap": 5}, "at most half of split_tokens"),
        ({"split_tokens": 0}, "at least 1"),
        ({"precision": "binary", "truncate_dim": 12}, "12 are not a multiple of 8"),
        (
            {"precision": "int8", "ranges": {"source": "r.json", "min": [0.0], "max": [1.0]}},
            r"1 dimensions \(r\.json\)",
        ),
        ({"precision": "int8", "ranges": "r.json"}, "ranges must be"),
        ({"ranges": {"source": "r.json", "min": [0.0], "max": [1.0]}}, "ranges is for"),
    ],
)
def test_a_wrong_parameter_is_refused_before_any_record(minilm, params, words):
    monitor = RecordingMonitor()
    for call in (minilm.output_type, lambda wrong: minilm.run(["a"], wrong, monitor)):
        with pytest.raises(ModelError, match=words) as caught:
            call(params)
        assert caught.value.code == "bad_param"
    assert monitor.batches == []


def test_a_dimension_that_bits_do_not_fill_is_refused_when_the_model_is_loaded(tmp_path):
    runner = EmbeddingRunner("embedding", causal_gpt2(tmp_path, pad=True, chat=False), "cpu")
    dimension = runner.output_type({}).list_size
    with pytest.raises(ModelError, match="not a multiple of 8") as caught:
        runner.output_type({"precision": "binary", "truncate_dim": dimension - 1})
    assert caught.value.code == "bad_param"


def test_a_vector_without_numbers_fails_where_the_precision_has_none_for_it(tmp_path, monkeypatch):
    runner = EmbeddingRunner("embedding", causal_gpt2(tmp_path, pad=True, chat=False), "cpu")
    next(runner._model.parameters()).data.fill_(float("nan"))
    [as_float] = run(runner, ["dog"])
    assert as_float.failure is None
    [as_int] = run(runner, ["dog"], precision="int8")
    assert as_int.failure.code == "not_finite"
