"""What tasks over images and sound have in common: the file is decoded here, and the pipeline never sees its name.

Only inputs of equal shape share a batch: nothing is padded, so that a batch gives what its records give one by one.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from transformers.utils import ModelOutput

from common.records import FileInput, Json
from common.tasks import TASKS
from workers.inference.core.runner import RunMonitor
from workers.inference.tasks.pipeline_task import PipelineParams, PlainTask, PreparedRecord, RowOutput
from workers.inference.tasks.shared_files import NO_SHARED_FILES, SharedFiles
from workers.inference.text.collate import take_row
from workers.inference.text.fields import parse_fields
from workers.inference.text.truncation import ModelInputs


class MediaTask(PlainTask):
    """A task over files of one kind."""

    #: The `AutoModel` classes that may have its head; the first that knows the architecture loads it.
    auto_classes: ClassVar[tuple[str, ...]]
    needs_tokenizer: ClassVar[bool] = False
    #: Inputs that go by the side of the model's own, one for each record.
    per_record_inputs: ClassVar[tuple[str, ...]] = ("target_size",)
    #: Numbers of the prepared input that weigh as much as a token of text.
    values_per_token: ClassVar[int] = 3 * 16 * 16

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.tokenizer = pipe.tokenizer
        self.limit = None
        self.files: SharedFiles = NO_SHARED_FILES

    def output_type_for(self, params: Mapping[str, Json]) -> Any:
        """Return the Arrow type of an output under these parameters, None where it travels as JSON."""
        return self.output_type

    @abstractmethod
    def decode(self, blob: bytes) -> Any:
        """Return what the pipeline takes for the file.

        Raises:
            RecordError: it cannot be decoded.
        """

    def prepare(self, value: Json, parsed_params: PipelineParams) -> PreparedRecord:
        """Return the decoded file as the pipeline prepares it."""
        task = TASKS[self.name]
        if isinstance(value, FileInput):
            return self.prepared(self.decode(value.blob), parse_fields(task, value.input), parsed_params)
        fields = parse_fields(task, value)
        return self.prepared(self.decode(self.files.read(fields[str(task.media)])), fields, parsed_params)

    def prepared(self, media: Any, fields: Mapping[str, Json], parsed_params: PipelineParams) -> PreparedRecord:
        """Return a decoded file, and the record's other fields, ready to run."""
        return PreparedRecord([dict(self.pipe.preprocess(media, **parsed_params.preprocess))])

    def is_deterministic(self, parsed_params: PipelineParams) -> bool:
        """Return False: files are hardly ever the same, and looking costs more than it saves."""
        return False

    def group(self, inputs: ModelInputs, parsed_params: PipelineParams) -> int:
        """Return a number that inputs of equal shapes share."""
        return hash(tuple((name, value.shape) for name, value in sorted(_tensors(inputs).items())))

    def tokens(self, inputs: ModelInputs, parsed_params: PipelineParams) -> int:
        """Return how many tokens of text the input weighs as much as: of an image, its patches of 16 by 16 pixels."""
        return 1 + sum(int(value.numel()) for value in _tensors(inputs).values()) // self.values_per_token

    def forward(
        self, batch: Sequence[ModelInputs], parsed_params: PipelineParams, monitor: RunMonitor
    ) -> list[RowOutput]:
        """Run one batch of equal shapes; return one row for each input, in order."""
        outputs = self.pipe.forward(self.collate(batch), **parsed_params.forward)
        return [self.row(outputs, number, inputs) for number, inputs in enumerate(batch)]

    def collate(self, batch: Sequence[ModelInputs]) -> ModelInputs:
        """Return one batch: tensors of shape (1, ...) stacked, what is aside of the first input."""
        return {
            name: torch.cat([inputs[name] for inputs in batch]) if isinstance(value, torch.Tensor) else value
            for name, value in batch[0].items()
        }

    def row(self, outputs: Mapping[str, Any], number: int, inputs: ModelInputs) -> RowOutput:
        """Take one record out of the batch, as `postprocess` takes it: by name, by number, as attributes."""
        row = {name: take_row(value, number) for name, value in _tensors(outputs).items()}
        return ModelOutput(row | {name: inputs[name] for name in self.per_record_inputs if name in inputs})


def _tensors(values: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor) and value.dim()}
