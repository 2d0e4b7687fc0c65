"""Encoder tasks: one class each, for the pipeline and for batches that are tokenized together.

`parse` reads a record once for both. `preprocess` and `postprocess` are the pipeline's steps for one record;
`forward_batch`, `reduce` and `postprocess_batch` do the same for a batch, and compute no more than the outputs need.
Where both give the same, `workers.inference.tasks.pipeline_runner` takes the batch.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import pipelines as hf
from transformers.pipelines.text_classification import ClassificationFunction, sigmoid, softmax

from common.errors import ModelError, RecordError
from common.records import Failure, Json
from common.tasks import TASKS
from workers.inference.core.async_copy import PendingResult, copy_to_host_async
from workers.inference.tasks.pipeline_task import PipelineParams, PipelineTask, PreparedRecord, RowOutput
from workers.inference.text.collate import take_row
from workers.inference.text.fields import parse_fields
from workers.inference.text.packing import split_rows
from workers.inference.text.tokenization import NO_TOKENS, TokenizedText, check_text, on_device
from workers.inference.text.truncation import ModelInputs, token_count, truncate_around_masks, truncate_pair

logger = logging.getLogger(__name__)

_MASKS = ("[MASK]", "<mask>")
#: What makes scores of logits.
_FUNCTIONS: Mapping[Any, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    ClassificationFunction.SIGMOID: sigmoid,
    ClassificationFunction.SOFTMAX: softmax,
    ClassificationFunction.NONE: lambda logits: logits,
}
_NO_MASK = "The text has no mask: expected {} in place of a word."
_HYPOTHESIS = "This example is {}."


class EncoderTask(PipelineTask[PipelineParams]):
    """A task that takes one forward pass of an encoder for each text."""

    #: Parameters that `forward_batch` does not support: a job that has one runs through the pipeline.
    pipeline_only_params: ClassVar[frozenset[str]] = frozenset()
    #: Whether `forward_batch` takes truncated texts; if not, records with longer ones run through the pipeline.
    truncates: ClassVar[bool] = True
    #: Whether the model's head reads the first token of each sequence alone.
    first_tokens: ClassVar[bool] = False

    def parse(self, value: Json, params: PipelineParams) -> PreparedRecord:
        """Return the record with its texts, not yet tokenized.

        Raises:
            RecordError: the record cannot run, for a reason that the user can fix.
        """
        fields = parse_fields(TASKS[self.name], value)
        pair = check_text(fields["text_pair"], "text_pair") if "text_pair" in fields else None
        return PreparedRecord(texts=[(check_text(fields["text"]), pair)])

    def prepare(self, value: Json, params: PipelineParams) -> PreparedRecord:
        """Return the record, tokenized by the pipeline."""
        record = self.parse(value, params)
        record.inputs, record.truncated = self.preprocess(record, params)
        return record

    def preprocess(self, record: PreparedRecord, params: PipelineParams) -> tuple[list[ModelInputs], bool]:
        """Return the inputs of one record, and whether they were truncated to the model's or the job's length."""
        [(text, pair)] = record.texts
        value = text if pair is None else {"text": text, "text_pair": pair}
        options = dict(params.preprocess)
        truncation, max_length = options.pop("truncation", True), options.pop("max_length", None)
        found = self.pipe.preprocess(value, **options)
        inputs = dict(found)
        limit = min(filter(None, (self.limit, max_length if truncation else None)), default=None)
        if limit is None or token_count(inputs) <= limit or not truncation:
            return [inputs], False
        if pair is not None and self.tokenizer.is_fast and truncation in (True, "longest_first"):
            kept = truncate_pair(found.sequence_ids(0), limit, self.tokenizer.truncation_side)
            return [{name: values[:, kept] for name, values in inputs.items()}], True
        return [dict(self.pipe.preprocess(value, **options, truncation=truncation, max_length=limit))], True

    def pipeline_logits(self, row: RowOutput) -> Tensor:
        """Return what `forward_batch` should give for a row that the pipeline gave."""
        logits: Tensor = row["logits"][0]
        return logits

    def refusal(self, record: PreparedRecord) -> Failure | None:
        """Return why a tokenized record cannot run, None if it can."""
        return None if all(map(len, record.inputs)) else NO_TOKENS

    def fits(self, record: PreparedRecord) -> bool:
        """Whether no text of a tokenized record is longer than the model takes."""
        return self.limit is None or all(len(text) <= self.limit for text in record.inputs)

    def forward_batch(self, inputs: dict[str, Tensor], texts: Sequence[TokenizedText]) -> list[Tensor]:
        """Return the logits of each text of a batch: one vector, or one for each token (or mask).

        Args:
            inputs: the model's arguments, padded or packed.
            texts: what the batch was made of.
        """
        outputs = self.pipe.model(**inputs)
        logits = outputs.logits if hasattr(outputs, "logits") else outputs[0]
        return list(logits) if logits.dim() == 2 else split_rows(logits, [len(text) for text in texts])

    def reduce(
        self, logits: Sequence[Tensor], records: Sequence[PreparedRecord], params: PipelineParams
    ) -> Sequence[Any] | PendingResult[Any]:
        """Return what each text's output needs of its logits, on the host; called while they are on the device."""
        if logits[0].dim() == 1:
            return copy_to_host_async([torch.stack(list(logits))], lambda host: list(host[0].float()))
        sizes = [len(row) for row in logits]
        return copy_to_host_async([torch.cat(list(logits))], lambda host: list(host[0].float().split(sizes)))

    def postprocess_batch(self, rows: Sequence[Any], record: PreparedRecord, params: PipelineParams) -> Json:
        """Return a record's output from what `reduce` gave for its texts."""
        return self.postprocess(
            [self.pipeline_row(record, number, row) for number, row in enumerate(rows)], record, params
        )

    def pipeline_row(self, record: PreparedRecord, number: int, logits: Tensor) -> RowOutput:
        """Return one text's logits in the form that the pipeline's `postprocess` takes."""
        return {"logits": logits[None]}

    def _was_truncated(self, inputs: ModelInputs, *texts: str | None) -> bool:
        """Whether the pipeline truncated these texts. It does not report that; only an input at the limit can be."""
        if self.limit is None or token_count(inputs) < self.limit:
            return False
        return len(self.tokenizer(*texts)["input_ids"]) > self.limit


class TextClassification(EncoderTask):
    """A label and its score for a text or a pair of texts: always a list, as `pipeline` returns for one text."""

    name = "text-classification"
    pipeline_class = hf.TextClassificationPipeline
    auto_class = "AutoModelForSequenceClassification"
    pipeline_only_params = frozenset({"truncation", "max_length"})
    first_tokens = True
    gives_plain_values = True

    @property
    def can_batch(self) -> bool:
        """Decoders find a text's last token by the padding, and refuse batches if they have no padding token."""
        return self.model_pad_id is not None

    def postprocess(self, rows: Sequence[RowOutput], record: PreparedRecord, params: PipelineParams) -> Json:
        """Return a list of labels with their scores."""
        output = super().postprocess(rows, record, params)
        return output if "top_k" in params.params else [output]

    def reduce(
        self, logits: Sequence[Tensor], records: Sequence[PreparedRecord], params: PipelineParams
    ) -> Sequence[Any] | PendingResult[Any]:
        """Return for each text the numbers of the best labels and their scores, for all texts at once."""
        function, count = self._function(params), params.postprocess.get("top_k", 1)

        def best(host: Sequence[Tensor]) -> list[Any]:
            scores = function(host[0].float().numpy())
            order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
            return list(zip(order.tolist(), np.take_along_axis(scores, order, axis=1).tolist(), strict=True))

        return copy_to_host_async([torch.stack(list(logits))], best)

    def postprocess_batch(self, rows: Sequence[Any], record: PreparedRecord, params: PipelineParams) -> Json:
        """Return a list of labels with their scores."""
        [(labels, scores)] = rows
        names = self.pipe.model.config.id2label
        return [{"label": names[label], "score": score} for label, score in zip(labels, scores, strict=True)]

    def _function(self, params: PipelineParams) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        """Return what makes scores of logits, as the pipeline chooses it."""
        config, chosen = self.pipe.model.config, params.postprocess.get("function_to_apply")
        if chosen is None:
            several = config.problem_type == "multi_label_classification" or config.num_labels == 1
            chosen = ClassificationFunction.SIGMOID if several else ClassificationFunction.SOFTMAX
            chosen = ClassificationFunction.NONE if config.problem_type == "regression" else chosen
        return _FUNCTIONS[chosen]


class FeatureExtraction(EncoderTask):
    """The hidden states of every token, of shape (1, tokens, width) as `pipeline` returns them."""

    name = "feature-extraction"
    pipeline_class = hf.FeatureExtractionPipeline
    auto_class = "AutoModel"
    ignore_missing = (r"(^|\.)pooler\.",)
    gives_plain_values = True
    pipeline_only_params = frozenset({"truncation"})

    def pipeline_logits(self, row: RowOutput) -> Tensor:
        """Return the hidden states."""
        states: Tensor = row[0][0]
        return states

    def pipeline_row(self, record: PreparedRecord, number: int, logits: Tensor) -> RowOutput:
        """Return the hidden states as a tuple."""
        return (logits[None],)

    def _rows(self, outputs: Any, lengths: Sequence[int]) -> list[RowOutput]:
        return [(take_row(outputs[0], number, length),) for number, length in enumerate(lengths)]


class TokenClassification(EncoderTask):
    """Names, places and other entities; with `stride`, long texts are read in overlapping windows."""

    name = "token-classification"
    pipeline_class = hf.TokenClassificationPipeline
    auto_class = "AutoModelForTokenClassification"
    per_token = ("logits", "input_ids", "offset_mapping", "special_tokens_mask")
    kept = (*per_token, "sentence", "is_last")
    pipeline_only_params = frozenset({"stride"})

    def preprocess(self, record: PreparedRecord, params: PipelineParams) -> tuple[list[ModelInputs], bool]:
        """Return the text, truncated unless there is a stride."""
        [(text, _)] = record.texts
        options = {  # copied, since the pipeline writes into `tokenizer_params`
            key: dict(value) if isinstance(value, dict) else value for key, value in params.preprocess.items()
        }
        inputs = list(self.pipe.preprocess(text, **options))
        return inputs, "stride" not in params.params and self._was_truncated(inputs[0], text)

    def pipeline_row(self, record: PreparedRecord, number: int, logits: Tensor) -> RowOutput:
        """Return the logits with the position of each token in the text."""
        text: TokenizedText = record.inputs[number]
        return {
            "logits": logits[None],
            "input_ids": torch.from_numpy(text.features["input_ids"])[None],
            "offset_mapping": torch.tensor([text.encoding.offsets]),
            "special_tokens_mask": torch.tensor([text.encoding.special_tokens_mask]),
            "sentence": record.texts[number][0],
            "is_last": True,
        }

    def _rows(self, outputs: Any, lengths: Sequence[int]) -> list[RowOutput]:
        # A tokenizer written in Python gives no offsets.
        return super()._rows({**outputs, "offset_mapping": outputs.get("offset_mapping")}, lengths)


class ZeroShotClassification(EncoderTask):
    """Scores for labels that come with the record or the job: one input for each label."""

    name = "zero-shot-classification"
    pipeline_class = hf.ZeroShotClassificationPipeline
    auto_class = "AutoModelForSequenceClassification"
    kept = ("logits", "candidate_label", "sequence", "is_last")
    truncates = False
    first_tokens = True

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        if pipe.entailment_id == -1:
            logger.warning("the model has no label named entailment: using its last label")

    @property
    def can_batch(self) -> bool:
        """As in text-classification, decoders need a padding token."""
        return self.model_pad_id is not None

    def parse(self, value: Json, params: PipelineParams) -> PreparedRecord:
        """Return the text paired with a hypothesis for each label.

        Raises:
            RecordError: `missing_field`, no labels; `wrong_type`, wrong labels or template.
        """
        fields = parse_fields(TASKS[self.name], value)
        text = check_text(fields["text"])
        before, after = self.zero_shot_params(fields, params)
        template = before.get("hypothesis_template", _HYPOTHESIS)
        texts = [(text, template.format(label)) for label in before["candidate_labels"]]
        return PreparedRecord(texts=texts, preprocess=before, postprocess=after)

    def preprocess(self, record: PreparedRecord, params: PipelineParams) -> tuple[list[ModelInputs], bool]:
        """Return the text with each hypothesis; the text is truncated, the hypothesis never."""
        inputs = [dict(part) for part in self.pipe.preprocess(record.texts[0][0], **record.preprocess)]
        return inputs, any(map(self._was_truncated, inputs, *zip(*record.texts, strict=True)))

    def pipeline_row(self, record: PreparedRecord, number: int, logits: Tensor) -> RowOutput:
        """Return the logits with their label."""
        label = record.preprocess["candidate_labels"][number]
        return {"logits": logits[None], "candidate_label": label, "sequence": record.texts[number][0]}


class FillMask(EncoderTask):
    """The likeliest words for each mask; `[MASK]` and `<mask>` both mean the tokenizer's own.

    In a batch, the vocabulary head, larger than a small encoder, runs on the masks alone.
    """

    name = "fill-mask"
    pipeline_class = hf.FillMaskPipeline
    auto_class = "AutoModelForMaskedLM"
    kept = ("logits", "input_ids")
    per_token = ("logits", "input_ids")
    truncates = False

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        self._mask, self._pad = self.tokenizer.mask_token_id, self.tokenizer.pad_token_id
        self._word = lru_cache(8192)(lambda token: self.tokenizer.decode([token]))
        self._warned = False

    def parse_params(self, params: Mapping[str, Json]) -> PipelineParams:
        """Return the job's parameters; `top_k` is at most the size of the vocabulary."""
        words = self.pipe.model.config.get_text_config().vocab_size
        parsed = super().parse_params(params)
        if parsed.postprocess.get("top_k", 0) > words:
            raise ModelError("bad_param", f"top_k must be at most {words}, the size of the model's vocabulary.")
        return parsed

    def parse(self, value: Json, params: PipelineParams) -> PreparedRecord:
        """Return the text with the tokenizer's own masks, and the targets that the record brings."""
        fields = parse_fields(TASKS[self.name], value)
        text = self._with_own_mask(check_text(fields["text"]))
        return PreparedRecord(texts=[(text, None)], postprocess=self.record_params(fields)[1])

    def preprocess(self, record: PreparedRecord, params: PipelineParams) -> tuple[list[ModelInputs], bool]:
        """Return the text, truncated to a window around its masks."""
        [(text, _)] = record.texts
        try:
            inputs = dict(self.pipe.preprocess(text, **params.preprocess))
        except hf.PipelineException as error:
            raise RecordError("no_mask", _NO_MASK.format(self.tokenizer.mask_token)) from error
        if self.limit is None or token_count(inputs) <= self.limit:
            return [inputs], False
        body = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [truncate_around_masks(inputs, self.limit, body, self._mask)], True

    def pipeline_logits(self, row: RowOutput) -> Tensor:
        """Return the logits of the masks."""
        logits: Tensor = row["logits"][0][row["input_ids"][0] == self._mask]
        return logits

    def refusal(self, record: PreparedRecord) -> Failure | None:
        """Return `no_mask` if the text has none."""
        failure = super().refusal(record)
        if failure or self._mask in record.inputs[0].features["input_ids"]:
            return failure
        return Failure("no_mask", _NO_MASK.format(self.tokenizer.mask_token))

    def forward_batch(self, inputs: dict[str, Tensor], texts: Sequence[TokenizedText]) -> list[Tensor]:
        """Return for each text logits of shape (masks, vocabulary)."""
        masks = self._mask_positions(inputs["input_ids"], texts)

        def keep_masks(_module: Any, _args: Any, output: Any) -> Any:
            output["last_hidden_state"] = output["last_hidden_state"].flatten(0, 1)[masks][None]
            return output

        hook = self.pipe.model.base_model.register_forward_hook(keep_masks)
        try:
            logits = self.pipe.model(**inputs).logits[0]
        finally:
            hook.remove()
        return list(logits.split([len(self._masks_of(text)) for text in texts]))

    def reduce(
        self, logits: Sequence[Tensor], records: Sequence[PreparedRecord], params: PipelineParams
    ) -> Sequence[Any] | PendingResult[Any]:
        """Return for each text the probabilities and ids of the best tokens, both of shape (masks, top_k)."""
        sizes = [len(part) for part in logits]
        probabilities = torch.cat(list(logits)).float().softmax(-1).split(sizes)
        groups = _by_params(records)
        best: list[Tensor] = []
        for group in groups:
            chosen = torch.cat([probabilities[number] for number in group])
            best += _top_k(chosen, {**params.postprocess, **records[group[0]].postprocess})

        def by_text(host: Sequence[Tensor]) -> list[Any]:
            found: dict[int, Any] = {}
            for group, scores, tokens in zip(groups, host[::2], host[1::2], strict=True):
                masks = [sizes[number] for number in group]
                found |= zip(group, zip(scores.split(masks), tokens.split(masks), strict=True), strict=True)
            return [found[number] for number in range(len(records))]

        return copy_to_host_async(best, by_text)

    def postprocess_batch(self, rows: Sequence[Any], record: PreparedRecord, params: PipelineParams) -> Json:
        """Return the words for the mask, or a list of such lists if there are several."""
        [(scores, tokens)] = rows
        ids = record.inputs[0].features["input_ids"].tolist()
        positions = self._masks_of(record.inputs[0]).tolist()
        found: list[Json] = [
            [
                {
                    "score": score,
                    "token": token,
                    "token_str": self._word(token),
                    "sequence": self._filled(ids, position, token, skip_special=len(positions) == 1),
                }
                for score, token in zip(mask_scores, mask_tokens, strict=True)
            ]
            for position, mask_scores, mask_tokens in zip(positions, scores.tolist(), tokens.tolist(), strict=True)
        ]
        return found[0] if len(found) == 1 else found

    def _mask_positions(self, ids: Tensor, texts: Sequence[TokenizedText]) -> Tensor:
        """Return the positions of the masks among all tokens of a batch, padded or packed; found without the GPU."""
        packed, longest = len(ids) == 1, ids.shape[1]
        positions, begin = [], 0
        for text in texts:
            positions.append(self._masks_of(text) + begin)
            begin += len(text) if packed else longest
        return on_device(torch.from_numpy(np.concatenate(positions)), str(ids.device))

    def _masks_of(self, text: TokenizedText) -> NDArray[np.int64]:
        """Return the positions of a text's masks."""
        return np.flatnonzero(text.features["input_ids"] == self._mask)

    def _filled(self, ids: Sequence[int], position: int, token: int, *, skip_special: bool) -> str:
        filled = [*ids[:position], token, *ids[position + 1 :]]
        words = [number for number in filled if number != self._pad] if self._pad in filled else filled
        text: str = self.tokenizer.decode(words, skip_special_tokens=skip_special)
        return text

    def _with_own_mask(self, text: str) -> str:
        """Return the text with another model's masks, if it has no other, replaced by the tokenizer's own."""
        mask = self.tokenizer.mask_token
        foreign = [word for word in _MASKS if word != mask and word in text]
        if mask in text or not foreign:
            return text
        if not self._warned:
            logger.info("%s in the input is read as this model's %s", foreign[0], mask)
            self._warned = True
        return text.replace(foreign[0], mask)


def _by_params(records: Sequence[PreparedRecord]) -> list[list[int]]:
    """Return the numbers of records that share one top-k: all without parameters of their own, and each other one."""
    shared = [number for number, record in enumerate(records) if not record.postprocess]
    single = [[number] for number, record in enumerate(records) if record.postprocess]
    return [shared, *single] if shared else single


def _top_k(probabilities: Tensor, params: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the best probabilities and their tokens, each of shape (masks, top_k), as the pipeline chooses them."""
    targets, count = params.get("target_ids"), params.get("top_k", 5)
    if targets is None:
        scores, tokens = probabilities.topk(count)
        return scores, tokens
    tokens = torch.as_tensor(targets, device=probabilities.device)
    scores, positions = probabilities[:, tokens].topk(min(count, len(tokens)))
    return scores, tokens[positions]


ENCODER_TASKS = (FillMask, TextClassification, TokenClassification, ZeroShotClassification, FeatureExtraction)
