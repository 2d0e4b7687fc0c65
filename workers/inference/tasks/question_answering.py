"""The part of a context that answers a question, in the shape that transformers 4 gave it.

Transformers 5 took this pipeline out; the models still load. A context too long for the model is read in windows
that overlap, and the windows of all records share batches.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
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
from workers.inference.models.batch_invariance import ensure_batch_invariance
from workers.inference.models.loader import ModelSource, load_model, load_tokenizer
from workers.inference.models.outputs_match import outputs_match
from workers.inference.tasks.answer_spans import Flags, Floats, best_answers, best_spans, merged
from workers.inference.text.fields import parse_fields
from workers.inference.text.packing import PROBE_TEXTS, PackingRunner, VarlenPacker, split_rows, supports_varlen_kernel
from workers.inference.text.tokenization import accepted_features, check_text, encode, pad, parse_inputs
from workers.inference.text.truncation import input_token_limit

#: Tokens in a window, and of overlap: what the pipeline took where nothing else was asked for.
_WINDOW = 384
_STRIDE = 128


@dataclass(frozen=True, slots=True)
class _Options:
    """What a job asked for, defaults filled in."""

    window: int  #: tokens, question and special ones included
    stride: int  #: tokens that neighbours have in common
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
    cut: bool = False  #: whether the question was cut


@dataclass(frozen=True, slots=True)
class _Window:
    """What the model sees at once."""

    features: dict[str, list[int]]
    encoding: Any  #: a tokenizers.Encoding: from tokens to words and characters
    context: Flags  #: which tokens belong to the context
    null: int | None  #: where the token stands that means "no answer"


class QuestionAnsweringRunner(PackingRunner):
    """Questions and contexts to answers.

    Parameters: `top_k` (1; more give a list), `doc_stride` (tokens of overlap, 128), `max_seq_len` (tokens of a
    window, 384), `max_question_len` (half a window), `max_answer_len` (15), `handle_impossible_answer` (false) and
    `align_to_words` (true; false for languages that do not put spaces between words).
    """

    def __init__(self, task: str, model: Path | None, device: str, load_params: Mapping[str, Json]) -> None:
        """Load the model and its tokenizer.

        Raises:
            ModelError: as `load_model` and `load_tokenizer`; `no_tokenizer`, it cannot tell where its tokens stand.
        """
        source = ModelSource.of(task, model, load_params)
        self._task = task
        self._device = device
        self._model = load_model(AutoModelForQuestionAnswering, source, device)
        self._tokenizer = load_tokenizer(source)
        if not self._tokenizer.is_fast:
            raise ModelError(
                "no_tokenizer", f"{task} needs a tokenizer that knows where its tokens stand: a tokenizer.json."
            )
        self._limit = input_token_limit(self._model, self._tokenizer)
        self._specials = self._tokenizer.num_special_tokens_to_add(pair=True)
        self._question_first = self._tokenizer.padding_side == "right"
        self.budget = TokenBudget.of(device)
        ensure_batch_invariance(self.budget, self._model, self._trial_rows, self._trial)
        if supports_varlen_kernel(self._model):
            self.pack()

    def pack(self) -> bool:
        """Run batches as packed rows from now on, if the model gives the same so; return whether it does."""
        rows = [
            row.features
            for row in encode(self._tokenizer, [(PROBE_TEXTS[0], text) for text in PROBE_TEXTS], self._limit)
        ]
        expected = [part.cpu().float() for row in rows for part in self._trial([row])[0]]

        def agrees(packer: VarlenPacker) -> bool:
            found = [part for row in self._trial(rows, packer) for part in row]
            return all(map(outputs_match, found, expected))

        return self._pack(agrees)

    def _trial_rows(self) -> list[dict[str, list[int]]]:
        pairs = [(asked.question, asked.context) for asked in map(_parse_question, samples(self._task))]
        return [row.features for row in encode(self._tokenizer, pairs, self._limit)]

    def _trial(self, rows: Sequence[Mapping[str, Any]], packer: VarlenPacker | None = None) -> list[tuple[Tensor, ...]]:
        lengths = [len(row["input_ids"]) for row in rows]
        return list(zip(*(split_rows(part, lengths) for part in self._scores(rows, packer)), strict=True))

    def run(self, inputs: Sequence[Json], params: Mapping[str, Json], monitor: RunMonitor) -> list[Outcome]:
        """Return for each `{question, context}` an object with score, start, end and answer, or a list of them."""
        chosen = self._options(params)
        read, outcomes = parse_inputs(inputs, _parse_question)
        asked, lengths = self._cut_questions(read, chosen.question)
        items = self._windows(asked, lengths, chosen)
        results = run_batches(items, self._logits, self.budget, monitor)
        found = defaultdict(list)
        for item, result in zip(items, results, strict=True):
            found[item.position].append((item.value, result))
        for position, windows in found.items():
            outcomes[position] = self._outcome(asked[position], windows, chosen)
        return [outcomes[position] for position in range(len(inputs))]

    def _options(self, params: Mapping[str, Json]) -> _Options:
        check_params(self._task, TASK_PARAMS["question-answering"], params)
        limit = self._limit or _WINDOW
        window = params.get("max_seq_len", min(limit, _WINDOW))
        least = self._specials + 2
        if not least <= window <= (self._limit or window):
            raise ModelError("bad_param", f"max_seq_len must be from {least} to {limit} here, found {window}.")
        stride = params.get("doc_stride", min(window // 2, _STRIDE))
        if stride >= window:
            raise ModelError("bad_param", f"doc_stride must be below max_seq_len, {window}; found {stride}.")
        half = (window - self._specials) // 2
        return _Options(
            window=window,
            stride=stride,
            question=min(params.get("max_question_len", half), half),
            longest=params.get("max_answer_len", 15),
            top_k=params.get("top_k", 1),
            impossible=params.get("handle_impossible_answer", False),
            whole_words=params.get("align_to_words", True),
        )

    def _cut_questions(self, read: Mapping[int, _Question], limit: int) -> tuple[dict[int, _Question], dict[int, int]]:
        """Return the records with no question longer than `limit` tokens, and the tokens that each question has."""
        asked, lengths = {}, {}
        for (position, one), offsets in zip(read.items(), self._offsets(list(read.values())), strict=True):
            asked[position], lengths[position] = one, len(offsets)
            if len(offsets) > limit:
                asked[position] = _Question(one.question[: offsets[limit - 1][1]], one.context, cut=True)
                lengths[position] = len(self._offsets([asked[position]])[0])  # a word cut in two is other tokens
        return asked, lengths

    def _offsets(self, asked: Sequence[_Question]) -> list[list[tuple[int, int]]]:
        """Return the place of each token in each question."""
        if not asked:
            return []
        questions = [one.question for one in asked]
        found = self._tokenizer(questions, add_special_tokens=False, truncation=False, return_offsets_mapping=True)
        return list(found["offset_mapping"])

    def _windows(
        self, asked: Mapping[int, _Question], lengths: Mapping[int, int], chosen: _Options
    ) -> list[Item[_Window]]:
        """Return the windows of all records, those of one record in order."""
        by_stride = defaultdict(list)
        for position, length in lengths.items():
            room = chosen.window - self._specials - length
            # The tokenizer panics over windows that would not advance.
            by_stride[chosen.stride if chosen.stride < room else room // 2].append(position)
        return [
            Item(position, len(window.encoding), window)
            for stride, positions in by_stride.items()
            for position, window in self._tokenized(asked, positions, chosen.window, stride)
        ]

    def _tokenized(
        self, asked: Mapping[int, _Question], positions: Sequence[int], tokens: int, stride: int
    ) -> list[tuple[int, _Window]]:
        questions = [asked[position].question for position in positions]
        contexts = [asked[position].context for position in positions]
        texts = (questions, contexts) if self._question_first else (contexts, questions)
        batch = self._tokenizer(
            *texts,
            padding=False,
            truncation="only_second" if self._question_first else "only_first",
            max_length=tokens,
            stride=stride,
            return_overflowing_tokens=True,
            return_attention_mask=True,
        )
        owners = batch.pop("overflow_to_sample_mapping")
        return [
            (positions[owner], self._window({name: batch[name][row] for name in batch}, batch.encodings[row]))
            for row, owner in enumerate(owners)
        ]

    def _window(self, features: dict[str, list[int]], encoding: Any) -> _Window:
        ids, cls = features["input_ids"], self._tokenizer.cls_token_id
        context = np.array([sequence == int(self._question_first) for sequence in encoding.sequence_ids])
        return _Window(features, encoding, context, ids.index(cls) if cls in ids else None)

    def _logits(
        self, rows: Sequence[_Window]
    ) -> Sequence[tuple[Floats, Floats]] | PendingResult[tuple[Floats, Floats]]:
        """Return for each window the logits of start and end, of shape (tokens,)."""
        lengths = [len(row.context) for row in rows]

        def by_window(host: Sequence[Tensor]) -> list[tuple[Floats, Floats]]:
            starts, ends = ([row.double().numpy() for row in split_rows(part, lengths)] for part in host)
            return list(zip(starts, ends, strict=True))

        return copy_to_host_async(self._scores([row.features for row in rows], self._packer), by_window)

    def _scores(self, rows: Sequence[Mapping[str, list[int]]], packer: VarlenPacker | None) -> list[Tensor]:
        """Return the logits of starts and those of ends, of shape (windows, longest), or (1, tokens) packed."""
        with torch.inference_mode():
            if packer is None:
                output = self._model(**accepted_features(pad(rows, self._tokenizer, self._device), self._model))
            else:
                names = accepted_features(rows[0], self._model)
                with packer.packed([{name: row[name] for name in names} for row in rows]) as inputs:
                    output = self._model(**inputs)
        return [output.start_logits, output.end_logits]

    def _outcome(self, asked: _Question, windows: Sequence[tuple[_Window, Any]], chosen: _Options) -> Outcome:
        # As many spans as the pipeline looked at: several tokens' spans can be the same words.
        count = chosen.top_k * 2 + 10 if chosen.whole_words else chosen.top_k
        found, nulls = [], []
        for window, result in windows:
            if isinstance(result, Failure):
                return Outcome(failure=result)
            start_logits, end_logits = result
            spans, null = best_spans(start_logits, end_logits, window.context, window.null, count, chosen.longest)
            nulls.append(null)
            for span in spans:
                start, end = self._characters(window.encoding, span.start, span.end, chosen.whole_words)
                found.append((asked.context[start:end], start, end, span.score))
        answers = merged(found)
        if chosen.impossible:
            answers.append({"score": min(nulls), "start": 0, "end": 0, "answer": ""})
        if not answers:
            return Outcome(failure=Failure("empty_text", "The tokenizer finds no token in the context."))
        best = best_answers(answers, chosen.top_k)
        return Outcome(best[0] if chosen.top_k == 1 else best, truncated=asked.cut)

    def _characters(self, encoding: Any, start: int, end: int, whole_words: bool) -> tuple[int, int]:
        """Return where in the context the tokens from `start` to `end` begin and end; words are not cut in two."""
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
