"""The fill-mask task: whose mask stands in the text, and what is kept of a long one."""

import logging
from collections.abc import Mapping
from typing import Any

from transformers import pipelines as hf

from common.errors import ModelError, RecordError
from common.records import Json
from common.tasks import TASKS
from workers.inference.tasks.pipeline_task import PipelineParams, PlainTask, PreparedRecord, record_params
from workers.inference.text.fields import parse_fields
from workers.inference.text.tokenization import check_text
from workers.inference.text.truncation import token_count, truncate_around_masks

logger = logging.getLogger(__name__)

_MASKS = ("[MASK]", "<mask>")
NO_MASK = "The text has no mask: expected {} where a word is wanted."


class FillMask(PlainTask):
    """The likeliest words for each mask; `[MASK]` and `<mask>` both stand for the tokenizer's own."""

    name = "fill-mask"
    pipeline_class = hf.FillMaskPipeline
    auto_class = "AutoModelForMaskedLM"
    kept = ("logits", "input_ids")
    per_token = ("logits", "input_ids")

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        self._said = False

    def parsed_params(self, params: Mapping[str, Json]) -> PipelineParams:
        """Return the job's parameters; `top_k` is at most the size of the vocabulary."""
        words = self.pipe.model.config.get_text_config().vocab_size
        parsed_params = super().parsed_params(params)
        if parsed_params.postprocess.get("top_k", 0) > words:
            raise ModelError("bad_param", f"top_k must be at most {words}, the model's vocabulary.")
        return parsed_params

    def prepare(self, value: Json, parsed_params: PipelineParams) -> PreparedRecord:
        """Return the record with its masks made the tokenizer's own, cut to a window around them."""
        fields = parse_fields(TASKS[self.name], value)
        text = self.own_mask(check_text(fields["text"]))
        try:
            inputs = dict(self.pipe.preprocess(text, **parsed_params.preprocess))
        except hf.PipelineException as error:
            raise RecordError("no_mask", NO_MASK.format(self.tokenizer.mask_token)) from error
        own = record_params(self, fields)
        if self.limit is None or token_count(inputs) <= self.limit:
            return PreparedRecord([inputs], postprocess=own[2])
        body = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        window = truncate_around_masks(inputs, self.limit, body, self.tokenizer.mask_token_id)
        return PreparedRecord([window], truncated=True, postprocess=own[2])

    def own_mask(self, text: str) -> str:
        """Return the text with another model's masks, if it has no other, made this tokenizer's own."""
        mask = self.tokenizer.mask_token
        foreign = [word for word in _MASKS if word != mask and word in text]
        if mask in text or not foreign:
            return text
        if not self._said:
            logger.info("%s in the input stands for this model's %s", foreign[0], mask)
            self._said = True
        return text.replace(foreign[0], mask)
