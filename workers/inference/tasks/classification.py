"""The tasks whose pipeline makes several inputs out of one record: a label or a window of the text each."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import pipelines as hf

from common.records import Json
from common.tasks import TASKS
from workers.inference.tasks.pipeline_task import PipelineParams, PlainTask, PreparedRecord, RowOutput, record_params
from workers.inference.text.candidate_labels import labelling
from workers.inference.text.fields import parse_fields
from workers.inference.text.tokenization import check_text
from workers.inference.text.truncation import ModelInputs, token_count

logger = logging.getLogger(__name__)


class ChunkTask(PlainTask):
    """A task whose `postprocess` takes all rows of a record."""

    def finish(self, rows: Sequence[RowOutput], prepared: PreparedRecord, parsed_params: PipelineParams) -> Json:
        """Return a record's output, from the rows of its inputs."""
        return self.pipe.postprocess(list(rows), **{**parsed_params.postprocess, **prepared.postprocess})

    def _was_cut(self, inputs: ModelInputs, *texts: str) -> bool:
        """Whether the pipeline cut these texts: it does not say, and only an input at the limit can have been."""
        if self.limit is None or token_count(inputs) < self.limit:
            return False
        return len(self.tokenizer(*texts)["input_ids"]) > self.limit


class TokenClassification(ChunkTask):
    """Names, places and other entities; with `stride`, long texts are read in windows that overlap."""

    name = "token-classification"
    pipeline_class = hf.TokenClassificationPipeline
    auto_class = "AutoModelForTokenClassification"
    per_token = ("logits", "input_ids", "offset_mapping", "special_tokens_mask")
    kept = (*per_token, "sentence", "is_last")

    def prepare(self, value: Json, parsed_params: PipelineParams) -> PreparedRecord:
        """Return the text, cut from the end unless there is a stride."""
        text = check_text(parse_fields(TASKS[self.name], value)["text"])
        inputs = list(self.pipe.preprocess(text, **_fresh(parsed_params.preprocess)))
        return PreparedRecord(inputs, "stride" not in parsed_params.params and self._was_cut(inputs[0], text))

    def _rows(self, outputs: Any, lengths: Sequence[int]) -> list[RowOutput]:
        # A tokenizer written in Python gives no offsets.
        return super()._rows({**outputs, "offset_mapping": outputs.get("offset_mapping")}, lengths)


class ZeroShotClassification(ChunkTask):
    """Scores for labels that come with the record or the job: one input for each label."""

    name = "zero-shot-classification"
    pipeline_class = hf.ZeroShotClassificationPipeline
    auto_class = "AutoModelForSequenceClassification"
    kept = ("logits", "candidate_label", "sequence", "is_last")

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        if pipe.entailment_id == -1:
            logger.warning("the model names none of its labels entailment: its last label is taken for it")

    @property
    def batches(self) -> bool:
        """As in text-classification: decoders need to know the padding."""
        return self.model_pad_id() is not None

    def prepare(self, value: Json, parsed_params: PipelineParams) -> PreparedRecord:
        """Return the text with each label; the text is cut, the label never."""
        text, before, after = self.labelling(value, parsed_params)
        inputs = [dict(part) for part in self.pipe.preprocess(text, **before)]
        template = before.get("hypothesis_template", "This example is {}.")
        cut = any(self._was_cut(part, text, template.format(part["candidate_label"])) for part in inputs)
        return PreparedRecord(inputs, cut, after)

    def labelling(self, value: Json, parsed_params: PipelineParams) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Return the text, and for it the parameters of the pipeline's `preprocess` and `postprocess`.

        Raises:
            RecordError: `missing_field`, no labels; `wrong_type`, labels or a template that are none.
        """
        fields = parse_fields(TASKS[self.name], value)
        text = check_text(fields["text"])
        before, _, after = record_params(self, fields)
        return text, labelling(self.name, {**parsed_params.preprocess, **before}), after


def _fresh(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy that the pipeline may write into: it puts keys into `tokenizer_params`."""
    return {key: dict(value) if isinstance(value, dict) else value for key, value in params.items()}
