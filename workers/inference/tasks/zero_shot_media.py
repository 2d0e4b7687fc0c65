"""Scores for labels that come with the record or the job: what zero-shot tasks over images and sound share."""

from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import RecordError
from common.records import Json
from workers.inference.tasks.media_task import MediaTask
from workers.inference.tasks.pipeline_task import PipelineParams, PreparedRecord, RowOutput, record_params
from workers.inference.text.candidate_labels import labelling
from workers.inference.text.truncation import ModelInputs, input_token_limit, token_count


class ZeroShotMediaTask(MediaTask):
    """A task that compares a file with labels; only records with the same labels share a batch."""

    needs_tokenizer = True
    per_record_inputs = ("candidate_labels",)

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        self._label_limit = input_token_limit(pipe.model, pipe.tokenizer)

    def prepared(self, media: Any, fields: Mapping[str, Json], parsed_params: PipelineParams) -> PreparedRecord:
        """Return the file and its labels ready to run."""
        own = record_params(self, fields)[0]
        before = labelling(self.name, {**parsed_params.preprocess, **own})
        inputs = dict(self.pipe.preprocess(media, **before))
        longest = token_count(inputs["text_inputs"][0])
        if self._label_limit is not None and longest > self._label_limit:
            raise RecordError("too_long", f"A label has {longest} tokens; the model takes {self._label_limit}.")
        return PreparedRecord([{**inputs, "hypothesis_template": before.get("hypothesis_template")}])

    def group(self, inputs: ModelInputs, parsed_params: PipelineParams) -> int:
        """Return a number that inputs of equal shapes and equal labels share."""
        labels = (*inputs["candidate_labels"], inputs["hypothesis_template"])
        return hash((super().group(inputs, parsed_params), labels))

    def collate(self, batch: Sequence[ModelInputs]) -> ModelInputs:
        """Return one batch; the labels are those of all its records."""
        return {name: value for name, value in super().collate(batch).items() if name != "hypothesis_template"}

    def row(self, outputs: Mapping[str, Any], number: int, inputs: ModelInputs) -> RowOutput:
        """Take one record out of the batch, as a dictionary: `postprocess` takes the labels out of it."""
        return dict(super().row(outputs, number, inputs))
