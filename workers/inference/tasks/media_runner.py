"""The runner of tasks over files: a `transformers` pipeline with the processor of its images or audio.

Files are decoded here, and the pipeline never sees their names. Only inputs of equal shape share a batch: nothing is
padded, so that a record gets the same output in a batch as alone.
"""

import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from transformers.pipelines.base import ChunkPipeline
from transformers.utils import ModelOutput

from common.errors import HugqueueError, ModelError, RecordError
from common.records import FileInput, Json
from common.storage.filesystem import open_stream
from common.storage.locations import is_shared
from common.tasks import TASKS, find_task
from workers.inference.core.runner import RunMonitor
from workers.inference.core.token_budget import TokenBudget
from workers.inference.loading.loader import ModelSource, load_config, load_model, load_processor, load_tokenizer
from workers.inference.tasks.pipeline_runner import PipelineRunner
from workers.inference.tasks.pipeline_task import PipelineParams, PipelineTask, PreparedRecord, RowOutput
from workers.inference.text.collate import take_row
from workers.inference.text.fields import parse_fields
from workers.inference.text.truncation import ModelInputs
from workers.models.load_options import DEFAULT_OPTIONS, LoadOptions


@dataclass(frozen=True, slots=True)
class SharedFiles:
    """The files that a worker reads itself: those under `HUGQUEUE_SHARED`, and nothing else."""

    locations: Sequence[str] = ()  #: directories and URLs
    max_bytes: int = 0  #: of one file

    def read(self, name: Json) -> bytes:
        """Return the contents of the file of that name.

        Raises:
            RecordError: `missing_file`, it is not under a shared location, and is not looked at; `no_file`, it cannot
                be read; `too_large`.
        """
        if not isinstance(name, str) or not is_shared(name, self.locations):
            raise RecordError(
                "missing_file",
                "The record came without its file, and this worker opens only files under its shared locations "
                "(HUGQUEUE_SHARED).",
            )
        try:
            with open_stream(name) as stream:
                blob = stream.read(self.max_bytes + 1)
        except (HugqueueError, OSError) as error:
            raise RecordError("no_file", f"{name} cannot be read: {error}"[:1000]) from error
        if len(blob) > self.max_bytes:
            raise RecordError(
                "too_large", f"{name} is longer than {self.max_bytes:,} bytes (HUGQUEUE_MAX_RECORD_BYTES)."
            )
        return blob


class MediaTask(PipelineTask[PipelineParams]):
    """A task over files of one kind."""

    #: The `AutoModel` classes that may have its head; the first that knows the architecture loads it.
    auto_classes: ClassVar[tuple[str, ...]]
    needs_tokenizer: ClassVar[bool] = False
    #: Further inputs besides the model's own, one for each record.
    per_record_inputs: ClassVar[tuple[str, ...]] = ("target_size",)
    #: Numbers of the prepared input that count as one token of text.
    values_per_token: ClassVar[int] = 3 * 16 * 16

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.tokenizer = pipe.tokenizer
        self.limit = None
        self.files = SharedFiles()

    def output_type(self, params: Mapping[str, Json]) -> Any:
        """Return the Arrow type of an output under these parameters, None where the task's declaration says it."""
        return None

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
        return self.preprocess(self.decode(self.files.read(fields[str(task.media)])), fields, params)

    def preprocess(self, media: Any, fields: Mapping[str, Json], params: PipelineParams) -> PreparedRecord:
        """Return a decoded file, and the record's other fields, ready to run."""
        found = self.pipe.preprocess(media, **params.preprocess)
        return PreparedRecord([dict(part) for part in (found if isinstance(self.pipe, ChunkPipeline) else [found])])

    def is_deterministic(self, params: PipelineParams) -> bool:
        """Return False: files are hardly ever equal, and comparing them costs more than it saves."""
        return False

    def group(self, inputs: ModelInputs, params: PipelineParams) -> int:
        """Return a number that inputs of equal shapes share."""
        return hash(tuple((name, value.shape) for name, value in sorted(_tensors(inputs).items())))

    def tokens(self, inputs: ModelInputs, params: PipelineParams) -> int:
        """Return the number of text tokens that the input counts as: one for each 16 by 16 pixels of an image."""
        return 1 + sum(int(value.numel()) for value in _tensors(inputs).values()) // self.values_per_token

    def forward(self, batch: Sequence[ModelInputs], params: PipelineParams, monitor: RunMonitor) -> list[RowOutput]:
        """Run one batch of equal shapes; return one row for each input, in order."""
        outputs = self.pipe.forward(self.collate(batch), **params.forward)
        return [self.row(outputs, number, inputs) for number, inputs in enumerate(batch)]

    def collate(self, batch: Sequence[ModelInputs]) -> ModelInputs:
        """Return one batch: tensors of shape (1, ...) stacked, anything else of the first input."""
        return {
            name: torch.cat([inputs[name] for inputs in batch]) if isinstance(value, torch.Tensor) else value
            for name, value in batch[0].items()
        }

    def row(self, outputs: Mapping[str, Any], number: int, inputs: ModelInputs) -> RowOutput:
        """Take one record out of the batch, in the form of `postprocess`: by name, by number, as attributes."""
        row = {name: take_row(value, number) for name, value in _tensors(outputs).items()}
        return ModelOutput(row | {name: inputs[name] for name in self.per_record_inputs if name in inputs})


class MediaRunner(PipelineRunner):
    """A `transformers` pipeline over files of one kind."""

    tasks: ClassVar[tuple[type[MediaTask], ...]]
    #: The class that prepares files, the pipeline's argument for it, and its name for people.
    processor_class: ClassVar[Any]
    processor_argument: ClassVar[str]
    processor_name: ClassVar[str]

    task: MediaTask

    def __init__(self, task: str, model: Path | None, device: str, options: LoadOptions = DEFAULT_OPTIONS) -> None:
        """Load the model with the head of `task`, and the processor of its inputs.

        Raises:
            ModelError: as `load_model`, `load_processor` and `load_tokenizer`; `missing_weights`, the architecture
                cannot do the task.
        """
        name = find_task(task).name
        chosen = next(known for known in self.tasks if known.name == name)
        source = ModelSource.of(task, model, options)
        self._device = device
        self._tokenizer_lock = threading.Lock()
        self._model = load_model(_find_head(chosen, source), source, device, ignore_missing=chosen.ignore_missing)
        parts = {self.processor_argument: load_processor(self.processor_class, source, self.processor_name)}
        if chosen.needs_tokenizer:
            parts["tokenizer"] = load_tokenizer(source)
        try:
            pipe = chosen.pipeline_class(model=self._model, task=chosen.name, device=device, **parts)
        except ValueError as error:
            raise ModelError("missing_weights", f"This model cannot do {chosen.name}: {error}"[:1000]) from error
        self.task = chosen(pipe)
        self.task.max_new_tokens = options.max_new_tokens
        self.task.files = SharedFiles(options.shared, options.max_file_bytes)
        self.budget = TokenBudget.of(device, generates=True)  # a calibration with texts does not hold for files

    def output_type(self, params: Mapping[str, Json]) -> Any:
        """Return the Arrow type of an output, None where the task's declaration says it."""
        return self.task.output_type(params)


def _find_head(chosen: type[MediaTask], source: ModelSource) -> Any:
    """Return the first of the task's `AutoModel` classes that knows the model's architecture."""
    classes = [getattr(transformers, name) for name in chosen.auto_classes]
    if len(classes) == 1:
        return classes[0]
    config = type(load_config(source))
    return next((auto_class for auto_class in classes if config in auto_class._model_mapping), classes[0])


def _tensors(values: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor) and value.dim()}
