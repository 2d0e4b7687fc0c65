"""The base of zero-shot tasks over images and audio: scores for labels that come with the record or the job."""

from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import RecordError
from common.records import Json
from workers.inference.tasks.media_task import MediaTask
from workers.inference.tasks.pipeline_task import PipelineParams, PreparedRecord, RowOutput
from workers.inference.text.truncation import ModelInputs, input_token_limit, token_count


class ZeroShotMediaTask(MediaTask):
    """A task that compares a file with labels; only records with the same labels share a batch."""

    needs_tokenizer = True
    per_record_inputs = ("candidate_labels",)

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        self._label_limit = input_token_limit(pipe.model, pipe.tokenizer)

    def preprocess(self, media: Any, fields: Mapping[str, Json], params: PipelineParams) -> PreparedRecord:
        """Return the file and its labels, ready to run."""
        before = self.zero_shot_params(fields, params)[0]
        inputs = dict(self.pipe.preprocess(media, **before))
        longest = token_count(inputs["text_inputs"][0])
        if self._label_limit is not None and longest > self._label_limit:
            raise RecordError("too_long", f"A label has {longest} tokens; the model takes {self._label_limit}.")
        return PreparedRecord([{**inputs, "hypothesis_template": before.get("hypothesis_template")}])

    def group(self, inputs: ModelInputs, params: PipelineParams) -> int:
        """Return a number that inputs of equal shapes and equal labels share."""
        labels = (*inputs["candidate_labels"], inputs["hypothesis_template"])
        return hash((super().group(inputs, params), labels))

    def collate(self, batch: Sequence[ModelInputs]) -> ModelInputs:
        """Return one batch; the labels are those of all its records."""
        return {name: value for name, value in super().collate(batch).items() if name != "hypothesis_template"}

    def row(self, outputs: Mapping[str, Any], number: int, inputs: ModelInputs) -> RowOutput:
        """Take one record out of the batch, as a dictionary: `postprocess` pops the labels from it."""
        return dict(super().row(outputs, number, inputs))
