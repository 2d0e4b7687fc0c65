"""Quantized vectors are those of sentence-transformers, bit by bit, alone and in the outcomes of a chunk."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sentence_transformers import quantize_embeddings

from common.payloads.codec import decode_outcomes, encode_outcomes, iter_outcomes, output_type
from common.payloads.quantization import number_type, quantize, quantize_outcomes, ranges_of, vectors_in
from common.records import Failure, Outcome
from common.task_params import PRECISIONS
from tests.support.embeddings import embedding_type

QUANTIZED = [precision for precision in PRECISIONS if precision != "float16"]
FAILED = Outcome(failure=Failure("empty_text", "why"))


def random_vectors(rows: int, dimension: int = 24, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(rows, dimension)).astype("float32")


def outcomes_of(vectors: Any) -> list[Outcome]:
    """A failure, then an outcome for each vector, the last of a truncated text."""
    return [FAILED, *(Outcome(vector) for vector in vectors[:-1]), Outcome(vectors[-1], truncated=True)]


def encoded(outcomes: list[Outcome], kind: pa.DataType) -> bytes:
    return encode_outcomes(range(len(outcomes)), range(len(outcomes)), outcomes, kind)


@pytest.mark.parametrize("precision", QUANTIZED)
def test_numbers_are_those_of_sentence_transformers(precision: str) -> None:
    first, others = random_vectors(100), random_vectors(1000, seed=1) * 2  # many are outside the ranges
    first[:, 3] = others[:, 3] = 0.25  # a dimension without a range
    first[:, 4] = 0.0  # on the edge of a bit
    ranges = ranges_of(first, "a test")
    expected = quantize_embeddings(others, precision, ranges=np.array([ranges.min, ranges.max]))
    found = quantize(others, precision, ranges)
    assert found.dtype == expected.dtype == number_type(precision).to_pandas_dtype()
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(quantize(first, precision, ranges), quantize_embeddings(first, precision))


def test_float16_is_a_plain_conversion() -> None:
    vectors = random_vectors(50)
    vectors[0, 0] = 1e9
    found = quantize(vectors, "float16")
    assert found.dtype == np.float16 and np.isinf(found[0, 0])
    np.testing.assert_array_equal(found[1:], vectors[1:].astype(np.float16))


def test_ranges_have_few_digits_and_are_exact_in_float32() -> None:
    vectors = random_vectors(50)
    ranges = ranges_of(vectors, "a test")
    np.testing.assert_array_equal(np.array(ranges.min, np.float32), vectors.min(axis=0))
    np.testing.assert_array_equal(np.array(ranges.max, np.float32), vectors.max(axis=0))
    assert max(len(repr(number)) for number in ranges.min) <= 16


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_outcomes_of_a_chunk_keep_all_but_the_numbers(precision: str) -> None:
    vectors = random_vectors(9)
    payload = encoded(outcomes_of(vectors), embedding_type(24))
    np.testing.assert_array_equal(vectors_in(payload), vectors)
    ranges = ranges_of(vectors, "a test")
    found = quantize_outcomes(payload, precision, ranges)
    kind = embedding_type(24, precision=precision)
    assert output_type(found) == kind
    assert kind.list_size == (3 if "binary" in precision else 24)
    expected = quantize(vectors, precision, ranges)
    for arrays in (False, True):
        rows = [outcome for _, _, outcome in iter_outcomes(decode_outcomes(found), arrays=arrays)]
        assert rows[0] == FAILED and [row.truncated for row in rows] == [False] * 9 + [True]
        np.testing.assert_array_equal([row.output for row in rows[1:]], expected)
        numbers = rows[1].output
        assert numbers.dtype == expected.dtype if arrays else type(numbers[0]) in (int, float)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_pieces_keep_their_places(precision: str) -> None:
    vectors = random_vectors(5, 16)
    pieces = [{"start": 10 * n, "end": 10 * n + 9, "vector": vector} for n, vector in enumerate(vectors)]
    outcomes = [Outcome(pieces[:3]), FAILED, Outcome(pieces[3:])]
    payload = encoded(outcomes, embedding_type(16, split_tokens=9))
    np.testing.assert_array_equal(vectors_in(payload), vectors)
    ranges = ranges_of(vectors, "a test")
    found = quantize_outcomes(payload, precision, ranges)
    assert output_type(found) == embedding_type(16, precision=precision, split_tokens=9)
    rows = [outcome.output for _, _, outcome in iter_outcomes(decode_outcomes(found), arrays=True)]
    assert rows[1] is None
    flat = [piece for row in (rows[0], rows[2]) for piece in row]
    assert [(piece["start"], piece["end"]) for piece in flat] == [(10 * n, 10 * n + 9) for n in range(5)]
    np.testing.assert_array_equal([piece["vector"] for piece in flat], quantize(vectors, precision, ranges))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("outcomes", [[], [FAILED, FAILED]])
def test_a_chunk_without_vectors_has_the_type_of_the_others(precision: str, outcomes: list[Outcome]) -> None:
    payload = encoded(outcomes, embedding_type(24))
    assert vectors_in(payload).size == 0
    found = quantize_outcomes(payload, precision)
    assert output_type(found) == embedding_type(24, precision=precision)
    assert [outcome for _, _, outcome in iter_outcomes(decode_outcomes(found))] == outcomes


def test_outputs_that_are_no_vectors_stay_as_they_are() -> None:
    payload = encoded([Outcome("text")], None)
    assert quantize_outcomes(payload, "int8") == payload
