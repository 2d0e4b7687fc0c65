"""The question-answering runner gives the answers that the model gives when it is called by hand, window by window."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    BertConfig,
    BertForQuestionAnswering,
    BertTokenizer,
    RobertaConfig,
    RobertaForQuestionAnswering,
    RobertaTokenizer,
)
from transformers.pipelines.document_question_answering import select_starts_ends

from common.errors import ModelError
from tests.support.tiny_models import RecordingMonitor
from workers.inference.tasks.question_answering import QuestionAnsweringRunner

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ["the", "a", "old", "man", "went", "to", "big", "river", "and", "saw", "small", "boat", "in", "seoul", "is"]
WORDS += ["where", "who", "what", "?", ".", ",", "서울", "강", "노인", "어디", "는", "에", "갔다"]
PIECES = [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz는에을은강"] + list("abcdefghijklmnopqrstuvwxyz")
LONG = "the old man went to the big river and saw a small boat , " * 14

RECORDS = [
    {"question": "where is the man ?", "context": "the old man went to the big river in Seoul."},
    {"question": "who ?", "context": "a"},
    {"question": "노인은 어디 갔다 ?", "context": "노인은 서울 강에 갔다 . 강은 big river 는 the boat"},
    {"question": "what is in the river ?", "context": LONG + "서울에 the boats"},
    {"question": "who saw", "context": "Smallboat , bigriver and the oldest man 😀 saw"},
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("bert")
    torch.manual_seed(5)
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys([*SPECIALS, *WORDS, *PIECES]))}
    BertTokenizer(vocab=vocabulary, model_max_length=64).save_pretrained(directory)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.4,
    )
    BertForQuestionAnswering(config).eval().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def roberta(tmp_path_factory) -> Path:
    """A RoBERTa over single bytes: offsets within a character, two separators, positions behind the padding's."""
    directory = tmp_path_factory.mktemp("roberta")
    torch.manual_seed(6)
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(ByteLevel.alphabet())]
    RobertaTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[]).save_pretrained(directory)
    config = RobertaConfig(
        vocab_size=len(pieces),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=82,
        pad_token_id=1,
        type_vocab_size=1,
        initializer_range=0.3,
    )
    RobertaForQuestionAnswering(config).eval().save_pretrained(directory)
    return directory


def answered(directory: Path, records=RECORDS, **params) -> list:
    runner = QuestionAnsweringRunner("question-answering", directory, "cpu")
    outcomes = runner.run(records, params, RecordingMonitor())
    assert [outcome.failure for outcome in outcomes] == [None] * len(records)
    return [outcome.output for outcome in outcomes]


def windows_by_hand(directory: Path, record: dict, window: int, stride: int) -> list:
    """Return for each window, run alone: its encoding, the logits of start and end, and what no answer is made of."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForQuestionAnswering.from_pretrained(directory).eval()
    encoded = tokenizer(
        record["question"],
        record["context"],
        truncation="only_second",
        max_length=window,
        stride=stride,
        return_overflowing_tokens=True,
    )
    found = []
    for row, encoding in enumerate(encoded.encodings):
        inputs = {name: torch.tensor([encoded[name][row]]) for name in tokenizer.model_input_names}
        with torch.inference_mode():
            output = model(**inputs)
        hidden = [sequence != 1 for sequence in encoding.sequence_ids]
        hidden[0] = False  # [CLS] takes part in the softmax
        found.append((encoding, output.start_logits.numpy(), output.end_logits.numpy(), np.array([hidden])))
    return found


def expected(directory: Path, record: dict, window=64, stride=32, top_k=1, longest=15, words=True) -> list:
    """Return the answers as transformers' own span selection and plain loops give them."""
    answers: dict[str, dict] = {}
    count = top_k * 2 + 10 if words else top_k
    for encoding, start, end, hidden in windows_by_hand(directory, record, window, stride):
        mask = np.ones_like(hidden, dtype=int)
        starts, ends, scores, _ = select_starts_ends(start, end, hidden, mask, top_k=count, max_answer_len=longest)
        for first, last, score in zip(starts, ends, scores, strict=True):
            if score == 0.0:
                continue  # what is left of a short context: spans that end before they begin
            begin, stop = encoding.offsets[first][0], encoding.offsets[last][1]
            if words:
                begin = encoding.word_to_chars(encoding.token_to_word(first), 1)[0]
                stop = encoding.word_to_chars(encoding.token_to_word(last), 1)[1]
            text = record["context"][begin:stop]
            answer = answers.setdefault(text.lower(), {"score": 0.0, "start": begin, "end": stop, "answer": text})
            answer["score"] += float(score)
    return sorted(answers.values(), key=lambda answer: -answer["score"])[:top_k]


def same(ours: list[dict], theirs: list[dict]) -> None:
    assert [answer["score"] for answer in ours] == pytest.approx([a["score"] for a in theirs], abs=1e-4)
    for mine, other in zip(ours, theirs, strict=True):
        assert {**mine, "score": 0} == {**other, "score": 0}


@pytest.mark.parametrize("words", [True, False])
def test_answers_are_those_of_the_model_called_by_hand(bert, words):
    ours = answered(bert, align_to_words=words)
    for record, answer in zip(RECORDS, ours, strict=True):
        same([answer], expected(bert, record, words=words))


def test_answers_of_a_model_with_other_special_tokens_are_right(roberta):
    records = [RECORDS[0], RECORDS[2], RECORDS[3]]
    for record, answer in zip(records, answered(roberta, records, max_seq_len=80, doc_stride=20), strict=True):
        same([answer], expected(roberta, record, window=80, stride=20))


def test_several_answers_come_as_a_list_best_first(bert):
    records = [RECORDS[0], RECORDS[2], RECORDS[3]]
    for record, answers in zip(records, answered(bert, records, top_k=4), strict=True):
        assert [answer["score"] for answer in answers] == sorted((a["score"] for a in answers), reverse=True)
        same(answers, expected(bert, record, top_k=4))


def test_several_answers_are_a_list_where_there_is_but_one(bert):
    record = {"question": "what is this?", "context": "Paris"}
    assert [len(answers) for answers in answered(bert, [record], top_k=3)] == [1]


def test_windows_and_lengths_can_be_chosen(bert):
    params = {"max_seq_len": 30, "doc_stride": 7, "max_answer_len": 3}
    for record, answer in zip(RECORDS, answered(bert, **params), strict=True):
        same([answer], expected(bert, record, window=30, stride=7, longest=3))
        assert answer["end"] - answer["start"] <= 3 * len("smallboat")


def test_an_answer_is_found_in_a_later_window(bert):
    model = BertForQuestionAnswering.from_pretrained(bert)
    with torch.no_grad():  # the boat of the last words is made the only place worth pointing at
        model.bert.embeddings.word_embeddings.weight[AutoTokenizer.from_pretrained(bert).vocab["서울"]] *= 25
    record = {"question": "where ?", "context": LONG + "서울"}
    directory = bert.parent / "later"
    AutoTokenizer.from_pretrained(bert).save_pretrained(directory)
    model.save_pretrained(directory)
    chances = expected(directory, record, top_k=1)
    (answer,) = answered(directory, [record])
    same([answer], chances)
    assert record["context"][answer["start"] : answer["end"]] == answer["answer"]


def test_no_answer_is_an_answer_when_requested(bert):
    record = RECORDS[3]
    nulls = []
    for _, start, end, hidden in windows_by_hand(bert, record, 64, 32):
        kept = ~hidden[0]
        chances = [np.exp(logits[0][0]) / np.exp(logits[0][kept]).sum() for logits in (start, end)]
        nulls.append(chances[0] * chances[1])
    (answers,) = answered(bert, [record], top_k=9999, handle_impossible_answer=True)
    (null,) = [answer for answer in answers if answer["answer"] == ""]
    assert null["score"] == pytest.approx(min(nulls), abs=1e-4)
    assert (null["start"], null["end"]) == (0, 0)
    assert all(answer["answer"] for answer in answered(bert, [record], top_k=9999)[0])


def test_a_question_too_long_is_cut_and_its_outcome_says_so(bert):
    runner = QuestionAnsweringRunner("question-answering", bert, "cpu")
    long = {"question": "where is the old man " * 40, "context": LONG}
    (cut,) = runner.run([long], {}, RecordingMonitor())
    same([cut.output], expected(bert, {**long, "question": " ".join(long["question"].split()[:30])}, stride=15))
    assert cut.truncated
    (shorter,) = runner.run([long], {"max_question_len": 2}, RecordingMonitor())
    same([shorter.output], expected(bert, {**long, "question": "where is"}))


def test_bad_records_fail_alone_at_their_position(bert):
    good = RECORDS[0]
    inputs = [
        good,
        "where ?",
        {"question": "where ?"},
        ["where ?", "a"],
        {"question": " ", "context": "a"},
        {"question": "where ?", "context": 7},
        {"question": "where ?", "context": "\u200b"},
        good,
    ]
    runner = QuestionAnsweringRunner("question-answering", bert, "cpu")
    outcomes = runner.run(inputs, {}, RecordingMonitor())
    codes = [outcome.failure and outcome.failure.code for outcome in outcomes]
    assert codes == [
        None,
        "missing_field",
        "missing_field",
        "wrong_type",
        "empty_text",
        "wrong_type",
        "empty_text",
        None,
    ]
    assert [outcomes[0].output, outcomes[7].output] == answered(bert, [good, good])


def test_windows_of_all_records_share_batches(bert):
    monitor = RecordingMonitor()
    QuestionAnsweringRunner("question-answering", bert, "cpu").run(RECORDS, {}, monitor)
    assert len(monitor.batches) < len(RECORDS)
    assert sorted(position for batch in monitor.batches for position in batch) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"topk": 2}, "Did you mean top_k"),
        ({"top_k": 0}, "at least 1"),
        ({"max_seq_len": 65}, "from 5 to 64"),
        ({"max_seq_len": 4}, "from 5 to 64"),
        ({"doc_stride": 64}, "below max_seq_len"),
        ({"handle_impossible_answer": 1}, "true or false"),
    ],
)
def test_a_wrong_parameter_is_refused_before_any_record(bert, params, message):
    monitor = RecordingMonitor()
    with pytest.raises(ModelError, match=message) as caught:
        QuestionAnsweringRunner("question-answering", bert, "cpu").run(RECORDS, params, monitor)
    assert caught.value.code == "bad_param"
    assert monitor.batches == []
