"""What each fast task does otherwise than its pipeline: reads for a whole chunk, computes no more than is asked for.

Parameters are checked and outputs are finished by the task over the pipeline
(`workers.inference.tasks.pipeline_task`), so
that both ways speak with one voice. Which records share a batch is for `workers.inference.tasks.encoder_runner`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from common.records import Failure, Json
from common.tasks import TASKS
from workers.inference.core.async_copy import PendingResult, copy_to_host_async
from workers.inference.tasks.fill_mask import NO_MASK
from workers.inference.tasks.pipeline_task import PipelineParams, PipelineTask, PreparedRecord, record_params
from workers.inference.text.fields import parse_fields
from workers.inference.text.packing import split_rows
from workers.inference.text.tokenization import TokenizedText, check_text, on_device

#: What a row's output needs, row by row: at once or later.
Reduced = Sequence[Any] | PendingResult[Any]


@dataclass(frozen=True, slots=True)
class TaskInput:
    """What one record asks for."""

    texts: Sequence[tuple[str, str | None]]  #: a text, or a pair of them, for each forward pass
    labels: Sequence[str] = ()  #: of zero-shot classification, one for each pair
    postprocess: Mapping[str, Any] = field(default_factory=dict)  #: the record's own parameters


class EncoderTask(ABC):
    """One task, run fast; `model` and `tokenizer` are those of the pipeline."""

    #: Parameters of the task that it does not support: a job with one of them goes the plain way.
    pipeline_only_params: ClassVar[frozenset[str]] = frozenset()
    #: Whether texts are cut to what the model takes; where not, the plain way takes records with longer ones.
    truncates: ClassVar[bool] = True
    #: Whether the model's head reads the first token of each sequence alone.
    first_tokens: ClassVar[bool] = False

    def __init__(self, task: PipelineTask[Any]) -> None:
        self.task = task
        self.model = task.pipe.model
        self.tokenizer = task.tokenizer

    def read(self, value: Json, parsed_params: PipelineParams) -> TaskInput:
        """Return what a record asks for.

        Raises:
            RecordError: it cannot be done, for a reason that the user can mend.
        """
        return TaskInput([(check_text(parse_fields(TASKS[self.task.name], value)["text"]), None)])

    def refusal(self, row: TokenizedText) -> Failure | None:
        """Return why a tokenised text cannot be done, None if it can."""
        return None

    def forward(self, inputs: dict[str, Tensor], rows: Sequence[TokenizedText]) -> list[Tensor]:
        """Return the logits of each row of a batch: one vector, or one for each of its tokens (or masks)."""
        logits = self.model(**inputs).logits
        return list(logits) if logits.dim() == 2 else split_rows(logits, [len(row) for row in rows])

    def reduce(self, logits: Sequence[Tensor], asked: Sequence[TaskInput], parsed_params: PipelineParams) -> Reduced:
        """Return of each row's logits what its output needs: of a batch, while it is on its device."""
        return copy_to_host_async([torch.stack(list(logits))], lambda host: list(host[0].float()))

    def part_of(self, row: Mapping[str, Tensor]) -> Tensor:
        """Return what `forward` should give, of a row that the plain way gave."""
        return row["logits"][0]

    @abstractmethod
    def finish(
        self, asked: TaskInput, rows: Sequence[tuple[TokenizedText, Any]], parsed_params: PipelineParams
    ) -> Json:
        """Return a record's output, from its rows and what `reduce` left of them."""

    def _postprocess(self, rows: Any, asked: TaskInput, parsed_params: PipelineParams) -> Json:
        return self.task.finish(rows, PreparedRecord([], postprocess=asked.postprocess), parsed_params)


class EncoderFillMask(EncoderTask):
    """The vocabulary head, larger than a small encoder, runs on the masks alone."""

    truncates = False

    def __init__(self, task: PipelineTask[Any]) -> None:
        super().__init__(task)
        self._mask, self._pad = self.tokenizer.mask_token_id, self.tokenizer.pad_token_id
        self._word = lru_cache(8192)(lambda token: self.tokenizer.decode([token]))

    def read(self, value: Json, parsed_params: PipelineParams) -> TaskInput:
        """Return the text with its masks made the tokenizer's own, and the targets that it brings."""
        fields = parse_fields(TASKS[self.task.name], value)
        text = self.task.own_mask(check_text(fields["text"]))  # type: ignore[attr-defined]
        return TaskInput([(text, None)], postprocess=record_params(self.task, fields)[2])

    def refusal(self, row: TokenizedText) -> Failure | None:
        """Return `no_mask` where there is none."""
        if self._mask in row.features["input_ids"]:
            return None
        return Failure("no_mask", NO_MASK.format(self.tokenizer.mask_token))

    def forward(self, inputs: dict[str, Tensor], rows: Sequence[TokenizedText]) -> list[Tensor]:
        """Return for each row logits of shape (masks, words)."""
        masks = self._places(inputs["input_ids"], rows)

        def keep_masks(_module: Any, _args: Any, output: Any) -> Any:
            output["last_hidden_state"] = output["last_hidden_state"].flatten(0, 1)[masks][None]
            return output

        hook = self.model.base_model.register_forward_hook(keep_masks)
        try:
            logits = self.model(**inputs).logits[0]
        finally:
            hook.remove()
        return list(logits.split([row.features["input_ids"].count(self._mask) for row in rows]))

    def _places(self, ids: Tensor, rows: Sequence[TokenizedText]) -> Tensor:
        """Return where masks stand among all tokens of a batch, padded or packed; a GPU would have to be waited for."""
        packed, longest = len(ids) == 1, ids.shape[1]
        places, begin = [], 0
        for row in rows:
            tokens = row.features["input_ids"]
            places += [begin + place for place, token in enumerate(tokens) if token == self._mask]
            begin += len(tokens) if packed else longest
        return on_device(torch.tensor(places), str(ids.device))

    def reduce(self, logits: Sequence[Tensor], asked: Sequence[TaskInput], parsed_params: PipelineParams) -> Reduced:
        """Return for each row its masks' best tokens with their probabilities."""
        sizes = [len(part) for part in logits]
        chances = torch.cat(list(logits)).float().softmax(-1).split(sizes)
        shared = [number for number, one in enumerate(asked) if not one.postprocess]
        groups = [shared] if shared else []
        groups += [[number] for number, one in enumerate(asked) if one.postprocess]
        best = [
            _best(
                torch.cat([chances[number] for number in group]),
                {**parsed_params.postprocess, **asked[group[0]].postprocess},
            )
            for group in groups
        ]

        def split_rows(host: Sequence[Tensor]) -> list[Any]:
            found: dict[int, Any] = {}
            for group, scores, tokens in zip(groups, host[::2], host[1::2], strict=True):
                of_group = [sizes[number] for number in group]
                pairs = zip(scores.split(of_group), tokens.split(of_group), strict=True)
                found |= {number: (one.tolist(), two.tolist()) for number, (one, two) in zip(group, pairs, strict=True)}
            return [found[number] for number in range(len(asked))]

        return copy_to_host_async([part for pair in best for part in pair], split_rows)

    def part_of(self, row: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of the masks."""
        return row["logits"][0][row["input_ids"][0] == self._mask]

    def finish(
        self, asked: TaskInput, rows: Sequence[tuple[TokenizedText, Any]], parsed_params: PipelineParams
    ) -> Json:
        """Return the words for the mask, or a list of such lists where there are several."""
        ((row, (scores, tokens)),) = rows
        ids = row.features["input_ids"]
        places = [place for place, token in enumerate(ids) if token == self._mask]
        found = [
            [
                {
                    "score": score,
                    "token": token,
                    "token_str": self._word(token),
                    "sequence": self._filled(ids, place, token, alone=len(places) == 1),
                }
                for score, token in zip(of_mask, words, strict=True)
            ]
            for place, of_mask, words in zip(places, scores, tokens, strict=True)
        ]
        return found[0] if len(found) == 1 else found

    def _filled(self, ids: Sequence[int], place: int, token: int, *, alone: bool) -> str:
        filled = [*ids[:place], token, *ids[place + 1 :]]
        words = [number for number in filled if number != self._pad] if self._pad in filled else filled
        text: str = self.tokenizer.decode(words, skip_special_tokens=alone)
        return text


class EncoderTextClassification(EncoderTask):
    """Texts and pairs, tokenised together."""

    pipeline_only_params = frozenset({"truncation", "max_length"})
    first_tokens = True

    def read(self, value: Json, parsed_params: PipelineParams) -> TaskInput:
        """Return the text or the pair."""
        fields = parse_fields(TASKS[self.task.name], value)
        text = check_text(fields["text"])
        pair = check_text(fields["text_pair"], "text_pair") if "text_pair" in fields else None
        return TaskInput([(text, pair)])

    def finish(
        self, asked: TaskInput, rows: Sequence[tuple[TokenizedText, Any]], parsed_params: PipelineParams
    ) -> Json:
        """Return a list of labels with their scores."""
        return self._postprocess([{"logits": logits[None]} for _, logits in rows], asked, parsed_params)


class EncoderTokenClassification(EncoderTask):
    """Entities are grouped by the pipeline itself."""

    pipeline_only_params = frozenset({"stride"})

    def reduce(self, logits: Sequence[Tensor], asked: Sequence[TaskInput], parsed_params: PipelineParams) -> Reduced:
        """Return each row's logits, of shape (tokens, labels)."""
        sizes = [len(part) for part in logits]
        return copy_to_host_async([torch.cat(list(logits))], lambda host: list(host[0].float().split(sizes)))

    def finish(
        self, asked: TaskInput, rows: Sequence[tuple[TokenizedText, Any]], parsed_params: PipelineParams
    ) -> Json:
        """Return the entities."""
        ((row, logits),) = rows
        taken = {
            "logits": logits[None],
            "input_ids": torch.tensor([row.features["input_ids"]]),
            "offset_mapping": torch.tensor([row.encoding.offsets]),
            "special_tokens_mask": torch.tensor([row.encoding.special_tokens_mask]),
            "sentence": asked.texts[0][0],
            "is_last": True,
        }
        return self._postprocess([taken], asked, parsed_params)


class EncoderZeroShotClassification(EncoderTask):
    """The pairs of all records share batches."""

    truncates = False
    first_tokens = True

    def read(self, value: Json, parsed_params: PipelineParams) -> TaskInput:
        """Return the text with each label."""
        text, before, after = self.task.labelling(value, parsed_params)  # type: ignore[attr-defined]
        template = before.get("hypothesis_template", "This example is {}.")
        labels = before["candidate_labels"]
        return TaskInput([(text, template.format(label)) for label in labels], labels, after)

    def finish(
        self, asked: TaskInput, rows: Sequence[tuple[TokenizedText, Any]], parsed_params: PipelineParams
    ) -> Json:
        """Return the labels with their scores, the likeliest first."""
        taken = [
            {"logits": logits[None], "candidate_label": label, "sequence": asked.texts[0][0]}
            for label, (_, logits) in zip(asked.labels, rows, strict=True)
        ]
        return self._postprocess(taken, asked, parsed_params)


class EncoderFeatureExtraction(EncoderTask):
    """Hidden states leave as the float32 numbers that they are."""

    pipeline_only_params = frozenset({"truncation"})

    def forward(self, inputs: dict[str, Tensor], rows: Sequence[TokenizedText]) -> list[Tensor]:
        """Return for each row hidden states of shape (tokens, width)."""
        return split_rows(self.model(**inputs)[0], [len(row) for row in rows])

    def reduce(self, logits: Sequence[Tensor], asked: Sequence[TaskInput], parsed_params: PipelineParams) -> Reduced:
        """Return each row's hidden states."""
        sizes = [len(part) for part in logits]
        return copy_to_host_async([torch.cat(list(logits))], lambda host: list(host[0].float().split(sizes)))

    def part_of(self, row: Any) -> Tensor:
        """Return the hidden states."""
        states: Tensor = row[0][0]
        return states

    def finish(
        self, asked: TaskInput, rows: Sequence[tuple[TokenizedText, Any]], parsed_params: PipelineParams
    ) -> Json:
        """Return lists of shape (1, tokens, width), as the pipeline does."""
        return [rows[0][1].tolist()]


ENCODER_TASKS: Mapping[str, type[EncoderTask]] = {
    "fill-mask": EncoderFillMask,
    "text-classification": EncoderTextClassification,
    "token-classification": EncoderTokenClassification,
    "zero-shot-classification": EncoderZeroShotClassification,
    "feature-extraction": EncoderFeatureExtraction,
}


def _best(chances: Tensor, chosen: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the best chances and their tokens, each of shape (masks, top_k), as the pipeline chooses them."""
    targets, count = chosen.get("target_ids"), chosen.get("top_k", 5)
    if targets is None:
        scores, tokens = chances.topk(count)
        return scores, tokens
    tokens = torch.as_tensor(targets, device=chances.device)
    scores, places = chances[:, tokens].topk(min(count, len(tokens)))
    return scores, tokens[places]
