"""The runner of tasks whose inputs a processor prepares: images, audio, video, and texts together with them.

A task is a pipeline's class, the classes of its model and processor, and what a record becomes; this module loads the
parts and runs them. Only inputs of equal shape share a batch: nothing is padded, so that a record gets the same output
in a batch as alone.
"""

import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import transformers
from transformers.pipelines.base import ChunkPipeline
from transformers.utils import ModelOutput

from common.errors import ModelError, RecordError
from common.params import check_params
from common.records import Json
from common.task_params import TASK_PARAMS
from common.tasks import find_task
from workers.inference.core.runner import RunMonitor
from workers.inference.core.token_budget import TokenBudget
from workers.inference.loading.loader import (
    ModelSource,
    load_config,
    load_model,
    load_processor,
    load_tokenizer,
    missing_library,
)
from workers.inference.tasks.media_files import SharedFiles
from workers.inference.tasks.pipeline_runner import PipelineRunner
from workers.inference.tasks.pipeline_task import PipelineParams, PipelineTask, PreparedRecord, RowOutput
from workers.inference.text.collate import (
    VALUES_PER_TOKEN,
    concatenate,
    shapes_of,
    size_in_tokens,
    take_row,
    tensors_of,
)
from workers.inference.text.tokenization import check_text
from workers.inference.text.truncation import ModelInputs
from workers.models.load_options import DEFAULT_OPTIONS, LoadOptions


@dataclass(frozen=True, slots=True)
class Processor:
    """What prepares the inputs of a task's models."""

    argument: str  #: of the pipeline
    auto_class: str  #: of transformers
    name: str  #: for people


IMAGE_PROCESSOR = Processor("image_processor", "AutoImageProcessor", "image processor")
FEATURE_EXTRACTOR = Processor("feature_extractor", "AutoFeatureExtractor", "feature extractor")
PROCESSOR = Processor("processor", "AutoProcessor", "processor")


class ProcessorTask(PipelineTask[PipelineParams]):
    """A task over inputs that are batched by their shapes."""

    #: The `AutoModel` classes that may have its head; the first that knows the architecture loads it.
    auto_classes: ClassVar[tuple[str, ...]]
    processor: ClassVar[Processor]
    needs_tokenizer: ClassVar[bool] = False
    #: Libraries that it needs besides, each with the extra that installs it.
    libraries: ClassVar[tuple[tuple[str, str], ...]] = ()
    #: Parameters that the pipeline does not have.
    own_params: ClassVar[frozenset[str]] = frozenset()
    #: Further inputs besides the model's own, one for each record.
    per_record_inputs: ClassVar[tuple[str, ...]] = ("target_size",)
    #: Numbers of the prepared input that count as one token of text.
    values_per_token: ClassVar[int] = VALUES_PER_TOKEN

    @classmethod
    def find_head(cls, source: ModelSource) -> Any:
        """Return the `AutoModel` class that loads the model.

        Raises:
            ModelError: as `load_config`.
        """
        return cls.first_head(cls.auto_classes, source)

    @staticmethod
    def first_head(names: Sequence[str], source: ModelSource) -> Any:
        """Return the first of these `AutoModel` classes that knows the model's architecture, else the first."""
        classes = [getattr(transformers, name) for name in names]
        if len(classes) == 1:
            return classes[0]
        config = type(load_config(source))
        return next((auto_class for auto_class in classes if config in auto_class._model_mapping), classes[0])

    @classmethod
    def load_parts(cls, source: ModelSource) -> dict[str, Any]:
        """Return what the pipeline takes beside the model, by its arguments.

        Raises:
            ModelError: as `load_processor` and `load_tokenizer`.
        """
        used = cls.processor
        parts = {used.argument: load_processor(getattr(transformers, used.auto_class), source, used.name)}
        return {**parts, "tokenizer": load_tokenizer(source)} if cls.needs_tokenizer else parts

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.tokenizer = pipe.tokenizer
        self.limit = None
        self.files = SharedFiles()

    def output_type(self, params: Mapping[str, Json]) -> Any:
        """Return the Arrow type of an output under these parameters, None where the task's declaration says it."""
        return None

    def parse_params(self, params: Mapping[str, Json]) -> PipelineParams:
        """Return the job's parameters, checked and split by step.

        Raises:
            ModelError: `bad_param`.
        """
        checked = check_params(self.name, TASK_PARAMS[self.name], params)
        taken = {name: value for name, value in checked.items() if name not in self.own_params}
        return replace(self._split_params(taken), params=checked)

    @abstractmethod
    def prepare(self, value: Json, params: PipelineParams) -> PreparedRecord:
        """Return the record, prepared by the pipeline.

        Raises:
            RecordError: the record cannot run, for a reason that the user can fix.
        """

    def preprocessed(self, value: Any, before: Mapping[str, Any]) -> list[ModelInputs]:
        """Return what the pipeline's `preprocess` makes of a value: the inputs of one or more forward passes."""
        found = self.pipe.preprocess(value, **before)
        return [dict(part) for part in (found if isinstance(self.pipe, ChunkPipeline) else [found])]

    def field(self, fields: Mapping[str, Json], params: PipelineParams, name: str) -> Json:
        """Return a field of the record, or the job's parameter of that name.

        Raises:
            RecordError: `missing_field`, there is neither.
        """
        value = fields.get(name, params.params.get(name))
        if value is None:
            raise RecordError("missing_field", f"{self.name} needs {name}, in the record or as -p {name}=TEXT.")
        return value

    def question(self, fields: Mapping[str, Json], params: PipelineParams) -> str:
        """Return the record's question, or the job's.

        Raises:
            RecordError: `missing_field`; as `check_text`.
        """
        return check_text(self.field(fields, params, "question"), "question")

    def is_deterministic(self, params: PipelineParams) -> bool:
        """Return False: such inputs are hardly ever equal, and comparing files costs more than it saves."""
        return False

    def group(self, inputs: ModelInputs, params: PipelineParams) -> int:
        """Return a number that inputs of equal shapes share."""
        return hash(shapes_of(inputs))

    def tokens(self, inputs: ModelInputs, params: PipelineParams) -> int:
        """Return the number of text tokens that the input counts as: one for each 16 by 16 pixels of an image."""
        return size_in_tokens(inputs, self.values_per_token)

    def forward(self, batch: Sequence[ModelInputs], params: PipelineParams, monitor: RunMonitor) -> list[RowOutput]:
        """Run one batch of equal shapes; return one row for each input, in order."""
        outputs = self.pipe.forward(self.collate(batch), **params.forward)
        return [self.row(outputs, number, inputs) for number, inputs in enumerate(batch)]

    def collate(self, batch: Sequence[ModelInputs]) -> ModelInputs:
        """Return one batch: tensors of shape (1, ...) stacked, anything else of the first input."""
        return concatenate(batch)

    def row(self, outputs: Mapping[str, Any], number: int, inputs: ModelInputs) -> RowOutput:
        """Take one record out of the batch, in the form of `postprocess`: by name, by number, as attributes."""
        row = {name: take_row(value, number) for name, value in tensors_of(outputs).items()}
        return ModelOutput(row | {name: inputs[name] for name in self.per_record_inputs if name in inputs})


class ProcessorRunner(PipelineRunner):
    """A `transformers` pipeline over what a processor prepares."""

    tasks: ClassVar[tuple[type[ProcessorTask], ...]]

    task: ProcessorTask

    def __init__(self, task: str, model: Path | None, device: str, options: LoadOptions = DEFAULT_OPTIONS) -> None:
        """Load the model with the head of `task`, and the processor of its inputs.

        Raises:
            ModelError: as `load_model` and `ProcessorTask.load_parts`; `missing_weights`, the architecture cannot do
                the task.
            WorkerError: `missing_library`, the task needs one that is not installed.
        """
        name = find_task(task).name
        chosen = next(known for known in self.tasks if known.name == name)
        _check_libraries(chosen)
        source = ModelSource.of(task, model, options)
        self._device = device
        self._tokenizer_lock = threading.Lock()
        self._model = load_model(chosen.find_head(source), source, device, ignore_missing=chosen.ignore_missing)
        parts = chosen.load_parts(source)
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


def _check_libraries(chosen: type[ProcessorTask]) -> None:
    for library, extra in chosen.libraries:
        if find_spec(library) is None:
            raise missing_library(f"{chosen.name} needs {library}, which is not installed", extra)
