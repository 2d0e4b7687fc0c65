"""Extractive question answering: the part of a context that answers a question, in the form of transformers 4.

Transformers 5 removed this pipeline; the models still load. A context too long for the model is read in overlapping
windows, and the windows of all records share batches. Scores are those of the pipeline of transformers 4.57: softmax
over the tokens that can be in an answer, window by window; start times end; spans of the same words added up.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import AutoModelForQuestionAnswering

from common.errors import ModelError
from common.params import check_params
from common.records import Failure, Json, Outcome
from common.task_params import TASK_PARAMS
from common.tasks import TASKS
from workers.inference.core.async_copy import PendingResult, copy_to_host_async
from workers.inference.core.batches import Item, run_batches
from workers.inference.core.runner import RunMonitor
from workers.inference.core.samples import samples
from workers.inference.core.token_budget import TokenBudget
from workers.inference.loading.batch_invariance import ensure_batch_invariance
from workers.inference.loading.loader import ModelSource, load_model, load_tokenizer
from workers.inference.text.fields import parse_fields
from workers.inference.text.packing import PROBE_TEXTS, PackingRunner, VarlenPacker, packs_faster, split_rows
from workers.inference.text.tokenization import TokenFeatures, check_text, encode, parse_inputs, token_features
from workers.inference.text.truncation import input_token_limit
from workers.models.load_options import DEFAULT_OPTIONS, LoadOptions

#: The pipeline's defaults: tokens in a window, and of overlap.
_WINDOW = 384
_STRIDE = 128

Floats = npt.NDArray[np.floating[Any]]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _AnswerParams:
    """A job's parameters, with defaults."""

    window: int  #: tokens, question and special ones included
    stride: int  #: tokens that neighboring windows share
    question: int  #: tokens of the question at most
    longest: int  #: tokens of the answer at most
    top_k: int
    impossible: bool  #: whether "no answer" is an answer
    whole_words: bool


@dataclass(frozen=True, slots=True)
class _Question:
    """A record's input."""

    question: str
    context: str
    truncated: bool = False  #: whether the question was truncated


@dataclass(frozen=True, slots=True)
class _Window:
    """The input of one forward pass."""

    features: TokenFeatures
    encoding: Any  #: a tokenizers.Encoding: from tokens to words and characters
    context: Flags  #: which tokens belong to the context
    null: int | None  #: position of the token that means "no answer"


class QuestionAnsweringRunner(PackingRunner):
    """Questions and contexts to answers.

    Parameters: `top_k` (1; more give a list), `doc_stride` (tokens of overlap, 128), `max_seq_len` (tokens of a
    window, 384), `max_question_len` (half a window), `max_answer_len` (15), `handle_impossible_answer` (false) and
    `align_to_words` (true; false for languages that do not put spaces between words).
    """

    def __init__(self, task: str, model: Path | None, device: str, options: LoadOptions = DEFAULT_OPTIONS) -> None:
        """Load the model and its tokenizer.

        Raises:
            ModelError: as `load_model` and `load_tokenizer`; `no_tokenizer`, it has no offsets.
        """
        source = ModelSource.of(task, model, options)
        self._task = task
        self._device = device
        self._model = load_model(AutoModelForQuestionAnswering, source, device)
        self._tokenizer = load_tokenizer(source)
        if not self._tokenizer.is_fast:
            raise ModelError("no_tokenizer", f"{task} needs a tokenizer with offsets: a tokenizer.json.")
        self._limit = input_token_limit(self._model, self._tokenizer)
        self._specials = self._tokenizer.num_special_tokens_to_add(pair=True)
        self._question_first = self._tokenizer.padding_side == "right"
        self.budget = TokenBudget.of(device)
        ensure_batch_invariance(self.budget, self._model, self._trial_rows, self._trial)
        if packs_faster(self._model):
            self.pack()

    def pack(self) -> bool:
        """Pack batches from now on, if the model gives the same for packed rows; return whether it does."""
        rows = [
            row.features
            for row in encode(self._tokenizer, [(PROBE_TEXTS[0], text) for text in PROBE_TEXTS], self._limit)
        ]
        return self._pack(
            lambda packer: [part for row in self._trial(rows, packer) for part in row],
            lambda: [part for row in rows for part in self._trial([row])[0]],
        )

    def _trial_rows(self) -> list[TokenFeatures]:
        pairs = [(record.question, record.context) for record in map(_parse_question, samples(self._task))]
        return [row.features for row in encode(self._tokenizer, pairs, self._limit)]

    def _trial(self, rows: Sequence[TokenFeatures], packer: VarlenPacker | None = None) -> list[tuple[Tensor, ...]]:
        lengths = [len(row["input_ids"]) for row in rows]
        return list(zip(*(split_rows(part, lengths) for part in self._scores(rows, packer)), strict=True))

    def run(self, inputs: Sequence[Json], params: Mapping[str, Json], monitor: RunMonitor) -> list[Outcome]:
        """Return for each `{question, context}` an object with score, start, end and answer, or a list of them."""
        parsed = self._parse_params(params)
        records, outcomes = parse_inputs(inputs, _parse_question)
        records, lengths = self._truncate_questions(records, parsed.question)
        items = self._windows(records, lengths, parsed)
        results = run_batches(items, self._logits, self.budget, monitor)
        found = defaultdict(list)
        for item, result in zip(items, results, strict=True):
            found[item.position].append((item.value, result))
        for position, windows in found.items():
            outcomes[position] = self._outcome(records[position], windows, parsed)
        return [outcomes[position] for position in range(len(inputs))]

    def _parse_params(self, params: Mapping[str, Json]) -> _AnswerParams:
        check_params(self._task, TASK_PARAMS["question-answering"], params)
        limit = self._limit or _WINDOW
        window = params.get("max_seq_len", min(limit, _WINDOW))
        min_window = self._specials + 2
        if not min_window <= window <= (self._limit or window):
            raise ModelError("bad_param", f"max_seq_len must be from {min_window} to {limit} here, found {window}.")
        stride = params.get("doc_stride", min(window // 2, _STRIDE))
        if stride >= window:
            raise ModelError("bad_param", f"doc_stride must be below max_seq_len, {window}; found {stride}.")
        half = (window - self._specials) // 2
        return _AnswerParams(
            window=window,
            stride=stride,
            question=min(params.get("max_question_len", half), half),
            longest=params.get("max_answer_len", 15),
            top_k=params.get("top_k", 1),
            impossible=params.get("handle_impossible_answer", False),
            whole_words=params.get("align_to_words", True),
        )

    def _truncate_questions(
        self, records: Mapping[int, _Question], limit: int
    ) -> tuple[dict[int, _Question], dict[int, int]]:
        """Return the records with questions of at most `limit` tokens, and the tokens of each question."""
        truncated, lengths = {}, {}
        for (position, record), offsets in zip(records.items(), self._offsets(list(records.values())), strict=True):
            truncated[position], lengths[position] = record, len(offsets)
            if len(offsets) > limit:
                question = record.question[: offsets[limit - 1][1]]
                truncated[position] = _Question(question, record.context, truncated=True)
                lengths[position] = len(self._offsets([truncated[position]])[0])  # a word cut in two is other tokens
        return truncated, lengths

    def _offsets(self, records: Sequence[_Question]) -> list[list[tuple[int, int]]]:
        """Return the start and end of each token in each question."""
        if not records:
            return []
        questions = [record.question for record in records]
        found = self._tokenizer(questions, add_special_tokens=False, truncation=False, return_offsets_mapping=True)
        return list(found["offset_mapping"])

    def _windows(
        self, records: Mapping[int, _Question], lengths: Mapping[int, int], parsed: _AnswerParams
    ) -> list[Item[_Window]]:
        """Return the windows of all records, those of one record in order."""
        by_stride = defaultdict(list)
        for position, length in lengths.items():
            available = parsed.window - self._specials - length
            # The tokenizer panics over windows that would not advance.
            by_stride[parsed.stride if parsed.stride < available else available // 2].append(position)
        return [
            Item(position, len(window.encoding), window)
            for stride, positions in by_stride.items()
            for position, window in self._tokenize(records, positions, parsed.window, stride)
        ]

    def _tokenize(
        self, records: Mapping[int, _Question], positions: Sequence[int], tokens: int, stride: int
    ) -> list[tuple[int, _Window]]:
        questions = [records[position].question for position in positions]
        contexts = [records[position].context for position in positions]
        texts = (questions, contexts) if self._question_first else (contexts, questions)
        batch = self._tokenizer(
            *texts,
            padding=False,
            truncation="only_second" if self._question_first else "only_first",
            max_length=tokens,
            stride=stride,
            return_overflowing_tokens=True,
            return_attention_mask=False,
        )
        owners = batch.pop("overflow_to_sample_mapping")
        rows = zip(owners, token_features(batch), batch.encodings, strict=True)
        return [(positions[owner], self._window(features, encoding)) for owner, features, encoding in rows]

    def _window(self, features: TokenFeatures, encoding: Any) -> _Window:
        classes = np.flatnonzero(features["input_ids"] == self._tokenizer.cls_token_id)
        context = np.array([sequence == int(self._question_first) for sequence in encoding.sequence_ids])
        return _Window(features, encoding, context, int(classes[0]) if len(classes) else None)

    def _logits(
        self, rows: Sequence[_Window]
    ) -> Sequence[tuple[Floats, Floats]] | PendingResult[tuple[Floats, Floats]]:
        """Return for each window the logits of start and end, of shape (tokens,)."""
        lengths = [len(row.context) for row in rows]

        def by_window(host: Sequence[Tensor]) -> list[tuple[Floats, Floats]]:
            starts, ends = ([row.double().numpy() for row in split_rows(part, lengths)] for part in host)
            return list(zip(starts, ends, strict=True))

        return copy_to_host_async(self._scores([row.features for row in rows], self._packer), by_window)

    def _scores(self, rows: Sequence[TokenFeatures], packer: VarlenPacker | None) -> list[Tensor]:
        """Return the logits of starts and those of ends, of shape (windows, longest), or (1, tokens) packed."""
        with torch.inference_mode(), self.model_inputs(rows, packer) as inputs:
            output = self._model(**inputs)
        return [output.start_logits, output.end_logits]

    def _outcome(self, record: _Question, windows: Sequence[tuple[_Window, Any]], parsed: _AnswerParams) -> Outcome:
        # As many spans as the pipeline compares: several can be the same words.
        count = parsed.top_k * 2 + 10 if parsed.whole_words else parsed.top_k
        found, nulls = [], []
        for window, result in windows:
            if isinstance(result, Failure):
                return Outcome(failure=result)
            start_logits, end_logits = result
            spans, null = best_spans(start_logits, end_logits, window.context, window.null, count, parsed.longest)
            nulls.append(null)
            for span in spans:
                start, end = self._characters(window.encoding, span.start, span.end, parsed.whole_words)
                found.append((record.context[start:end], start, end, span.score))
        answers = merge_answers(found)
        if parsed.impossible:
            answers.append({"score": min(nulls), "start": 0, "end": 0, "answer": ""})
        if not answers:
            return Outcome(failure=Failure("empty_text", "The tokenizer finds no token in the context."))
        best = sorted(answers, key=lambda answer: -answer["score"])[: parsed.top_k]
        return Outcome(best[0] if parsed.top_k == 1 else best, truncated=record.truncated)

    def _characters(self, encoding: Any, start: int, end: int, whole_words: bool) -> tuple[int, int]:
        """Return the start and end in the context of the tokens from `start` to `end`, in whole words or not."""
        sequence = int(self._question_first)
        words = (encoding.token_to_word(start), encoding.token_to_word(end)) if whole_words else (None, None)
        if words[0] is not None and words[1] is not None:
            first, last = (encoding.word_to_chars(word, sequence) for word in words)
            if first is not None and last is not None:
                return first[0], last[1]
        return encoding.offsets[start][0], encoding.offsets[end][1]


def _parse_question(value: Json) -> _Question:
    fields = parse_fields(TASKS["question-answering"], value)
    return _Question(check_text(fields["question"], "question"), check_text(fields["context"], "context"))


@dataclass(frozen=True, slots=True)
class AnswerSpan:
    """Tokens `start` to `end`, both included, with the probability that they are the answer."""

    start: int
    end: int
    score: float


def best_spans(
    start: Floats, end: Floats, context: Flags, null: int | None, count: int, longest: int
) -> tuple[list[AnswerSpan], float]:
    """Return the likeliest spans of one window, at most `count`, and the probability that it has no answer.

    Args:
        start: logits of shape (tokens,), of the first token of a span.
        end: the same of its last token.
        context: which tokens can be in an answer.
        null: the token (`[CLS]`) that means "no answer"; it takes part in the softmax only.
        count: the number of spans to return.
        longest: tokens in a span at most.
    """
    candidates = context.copy()
    if null is not None:
        candidates[null] = True
    starts, ends = _softmax(start, candidates), _softmax(end, candidates)
    no_answer = 0.0 if null is None else float(starts[null] * ends[null])
    positions = np.flatnonzero(context)
    if null is not None:
        positions = positions[positions != null]
    # One row for each start of a span, one column for each end, counted from the start.
    reach = positions[:, None] + np.arange(min(longest, len(start)))
    inside = np.isin(reach, positions)
    scores = np.where(inside, starts[positions][:, None] * ends[np.minimum(reach, len(end) - 1)], -1.0)
    count = min(count, int(inside.sum()))
    order = np.argsort(-scores, axis=None, kind="stable")[:count]
    spans = [
        AnswerSpan(int(positions[row]), int(reach[row, column]), float(scores[row, column]))
        for row, column in zip(*np.unravel_index(order, scores.shape), strict=True)
    ]
    return spans, no_answer


def merge_answers(found: Iterable[tuple[str, int, int, float]]) -> list[dict[str, Any]]:
    """Return one answer for each text, ignoring case: its first position, and the sum of all scores.

    Args:
        found: text, start, end (exclusive), score.
    """
    answers: dict[str, dict[str, Any]] = {}
    for text, start, end, score in found:
        known = answers.setdefault(text.lower(), {"score": 0.0, "start": start, "end": end, "answer": text})
        known["score"] += score
    return list(answers.values())


def _softmax(logits: Floats, candidates: Flags) -> Floats:
    masked = np.where(candidates, logits, -np.inf)
    powers = np.exp(masked - masked.max())
    result: Floats = powers / powers.sum()
    return result
