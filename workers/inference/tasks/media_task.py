"""The base of tasks over files of one kind. They are decoded here, and the pipeline never sees their names."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from common.records import FileInput, Json
from common.tasks import TASKS
from workers.inference.tasks.pipeline_task import PipelineParams, PreparedRecord
from workers.inference.tasks.processor_runner import ProcessorTask
from workers.inference.text.fields import parse_fields


class MediaTask(ProcessorTask):
    """A task over files of one kind."""

    @abstractmethod
    def decode(self, blob: bytes) -> Any:
        """Return what the pipeline takes for the file.

        Raises:
            RecordError: it cannot be decoded.
        """

    def prepare(self, value: Json, params: PipelineParams) -> PreparedRecord:
        """Return the decoded file, prepared by the pipeline."""
        task = TASKS[self.name]
        if isinstance(value, FileInput):
            return self.preprocess(self.decode(value.blob), parse_fields(task, value.input), params)
        fields = parse_fields(task, value)
        return self.preprocess(self.decode(self.files.read(fields[task.media[0]])), fields, params)

    def preprocess(self, media: Any, fields: Mapping[str, Json], params: PipelineParams) -> PreparedRecord:
        """Return a decoded file, and the record's other fields, ready to run."""
        return PreparedRecord(self.preprocessed(media, params.preprocess))
