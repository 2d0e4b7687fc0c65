"""Every runner gives what transformers itself gives, on two thousand mixed records, English and Korean.

The reference is `transformers.pipeline` in batches, or, for tasks that transformers 5 removed, direct calls of the
model, in batches too: padding changes only the last digits.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from transformers import AutoModelForQuestionAnswering, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.pipelines.document_question_answering import select_starts_ends

from common.records import Json, Outcome
from tests.support import tiny_models
from tests.support.pipeline_reference import TOLERANCE, assert_same, run
from tests.support.tiny_models import mixed
from tests.support.tiny_seq2seq import make_bart, make_t5

RECORDS = 2000
BATCH = 128
FEW_LABELS = {"candidate_labels": ["old news", "서울"]}
GREEDY = {"do_sample": False, "max_new_tokens": 6}


def outputs(outcomes: Sequence[Outcome]) -> list[Json]:
    assert len(outcomes) == RECORDS
    assert [outcome.failure for outcome in outcomes if outcome.failure] == []
    return [outcome.output for outcome in outcomes]


def by_pipeline(task: str, model: Path, texts: Sequence[str], **params: Json) -> list[Json]:
    pipe = transformers.pipeline(task, model=str(model), device="cpu")
    if task == "text-generation":
        pipe.tokenizer.padding_side = "left"
    positions = sorted(range(len(texts)), key=lambda position: len(texts[position]))
    found: dict[int, Json] = dict(
        zip(positions, pipe([texts[position] for position in positions], **params), strict=True)
    )
    return [found[position] for position in range(len(texts))]


def batches(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (rows[first : first + BATCH] for first in range(0, len(rows), BATCH))


@pytest.mark.parametrize(
    ("task", "model", "mask", "params", "more"),
    [
        ("fill-mask", "masked_bert", "[MASK]", {}, {}),
        ("fill-mask", "masked_roberta", "<mask>", {"top_k": 2}, {}),
        ("text-classification", "classifier", None, {"top_k": None}, {"truncation": True}),
        ("token-classification", "tagger", None, {"aggregation_strategy": "none"}, {}),
        ("token-classification", "tagger", None, {"aggregation_strategy": "simple"}, {}),
        ("zero-shot-classification", "natural_language_inference", None, {**FEW_LABELS, "multi_label": True}, {}),
    ],
)
def test_outputs_are_those_of_the_pipeline(tmp_path, task, model, mask, params, more):
    directory = getattr(tiny_models, model)(tmp_path)
    texts = mixed(RECORDS, mask, longest=12 if mask else 90)  # the pipeline cuts no masked text, and fails
    found = outputs(run(task, directory, texts, **params))
    expected = by_pipeline(task, directory, texts, batch_size=BATCH, **params, **more)
    if task == "token-classification":  # with random weights, two labels of a token can tie, and the batch decides
        ties = [at for at in range(RECORDS) if labels(found[at]) != labels(expected[at])]
        for at in ties:
            expected[at] = by_pipeline(task, directory, texts[at : at + 1], **params)[0]
    assert_same(found, expected)


def labels(entities: Json) -> list[str]:
    return [entity.get("entity") or entity["entity_group"] for entity in entities]


@pytest.mark.parametrize("strategy", ["first", "average", "max"])
def test_entities_are_those_of_the_pipeline_however_they_are_joined(tmp_path, strategy):
    directory, texts = tiny_models.tagger(tmp_path), mixed(RECORDS)[:300]
    found = run("ner", directory, texts, aggregation_strategy=strategy)
    expected = by_pipeline("ner", directory, texts, aggregation_strategy=strategy)
    assert_same([outcome.output for outcome in found], expected)


def test_hidden_states_are_those_of_the_pipeline(tmp_path):
    directory = tiny_models.masked_bert(tmp_path)
    texts = mixed(RECORDS)
    expected = by_pipeline("feature-extraction", directory, texts, truncation=True)
    for ours, theirs in zip(outputs(run("feature-extraction", directory, texts)), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)


def test_generated_texts_are_those_of_the_pipeline(tmp_path):
    directory = tiny_models.causal_gpt2(tmp_path, pad=True)
    texts = mixed(RECORDS, longest=8)
    expected = by_pipeline("text-generation", directory, texts, batch_size=BATCH, **GREEDY)
    assert outputs(run("text-generation", directory, texts, **GREEDY)) == expected


def test_vectors_are_those_of_sentence_transformers(tmp_path):
    first = modules.Transformer(str(tiny_models.masked_bert(tmp_path / "bert")))
    model = SentenceTransformer(modules=[first, modules.Pooling(32), modules.Normalize()], device="cpu")
    model.save(str(tmp_path / "model"))
    texts = mixed(RECORDS)
    found = outputs(run("embedding", tmp_path / "model", texts))
    np.testing.assert_allclose(np.stack(found), model.encode(texts, batch_size=BATCH), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("task", "make", "name"),
    [
        ("translation_en_to_de", make_t5, "translation_text"),
        ("summarization", make_bart, "summary_text"),
    ],
)
def test_texts_of_encoder_decoder_models_are_those_of_generate(tmp_path, task, make, name):
    directory = make(tmp_path)
    texts = mixed(RECORDS, longest=5)
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(directory).eval(), AutoTokenizer.from_pretrained(directory)
    own = (getattr(model.config, "task_specific_params", None) or {}).get(task, {}) | {"num_beams": 2, **GREEDY}
    own.pop("max_length", None)
    limit = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 60))
    prefix = own.pop("prefix", "")

    def generated(some: Sequence[str]) -> list[Json]:
        rows = [prefix + text for text in some]
        inputs = tokenizer(rows, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        ids = model.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], **own)
        return [[{name: text}] for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]

    expected = [one for some in batches(texts) for one in generated(some)]
    found = outputs(run(task, directory, texts, num_beams=2, **GREEDY))
    # With random weights, two beams can tie, and the batch decides: then the record by itself does.
    for at in (at for at in range(RECORDS) if found[at] != expected[at]):
        [expected[at]] = generated(texts[at : at + 1])
    assert found == expected


def test_answers_are_those_of_the_model_called_by_hand(tmp_path):
    directory = tiny_models.answering(tmp_path)
    contexts = mixed(RECORDS)
    records = [{"question": f"what is {text[:12]} ?", "context": text} for text in contexts]
    expected = answers_by_hand(directory, records)
    assert any(len(record["context"]) > 400 for record in records)
    for ours, theirs in zip(outputs(run("question-answering", directory, records)), expected, strict=True):
        assert_same(ours, theirs)


def answers_by_hand(directory: Path, records: Sequence[dict[str, str]]) -> list[dict[str, Json]]:
    """Return each record's best answer, as transformers' own span selection finds it in windows of 64 tokens."""
    model = AutoModelForQuestionAnswering.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    windows = tokenizer(
        [record["question"] for record in records],
        [record["context"] for record in records],
        truncation="only_second", max_length=64, stride=32, return_overflowing_tokens=True, padding=True,
        return_tensors="pt",
    )  # fmt: skip
    owners = windows.pop("overflow_to_sample_mapping")
    logits = [model(**{name: windows[name][rows] for name in windows}) for rows in batches(torch.arange(len(owners)))]
    starts, ends = (
        torch.cat([getattr(some, name).detach() for some in logits]) for name in ("start_logits", "end_logits")
    )
    found: dict[int, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row, encoding in enumerate(windows.encodings):
        context = records[int(owners[row])]["context"]
        for text, start, end, score in spans_by_hand(encoding, starts[row], ends[row], context):
            answer = {"score": 0.0, "start": start, "end": end, "answer": text}
            found[int(owners[row])].setdefault(text.lower(), answer)["score"] += score
    return [max(found[number].values(), key=lambda answer: answer["score"]) for number in range(len(records))]


def spans_by_hand(
    encoding: Any, start: torch.Tensor, end: torch.Tensor, context: str
) -> Iterator[tuple[str, int, int, float]]:
    mask = np.array([encoding.attention_mask])
    hidden = np.array([[sequence != 1 for sequence in encoding.sequence_ids]])
    hidden[0, 0] = False  # [CLS] takes part in the softmax
    logits = start[None].numpy(), end[None].numpy()
    firsts, lasts, scores, _ = select_starts_ends(*logits, hidden, mask, top_k=12, max_answer_len=15)
    for first, last, score in zip(firsts, lasts, scores, strict=True):
        if score > 0.0:  # what is left of a short context: spans that end before they begin
            begin = encoding.word_to_chars(encoding.token_to_word(first), 1)[0]
            stop = encoding.word_to_chars(encoding.token_to_word(last), 1)[1]
            yield context[begin:stop], begin, stop, float(score)
