"""Decisions: typed questions about a state, each answered with a probability for every option."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

import transformers
from transformers.pipelines.decision import DecisionPipeline

from common.errors import RecordError
from common.records import Json
from common.tasks import TASKS
from workers.inference.core.runner import RunMonitor
from workers.inference.loading.loader import ModelSource, load_config, load_processor, load_tokenizer
from workers.inference.tasks.images import decode_image
from workers.inference.tasks.pipeline_task import PipelineParams, PreparedRecord, RowOutput
from workers.inference.tasks.processor_runner import PROCESSOR, ProcessorRunner, ProcessorTask
from workers.inference.text.fields import parse_fields
from workers.inference.text.truncation import ModelInputs, input_token_limit
from workers.models.file_references import PROCESSOR_CONFIGS


class Decision(ProcessorTask):
    """The answers to the questions of a record."""

    name = "decision"
    pipeline_class = DecisionPipeline
    auto_classes = ("AutoModelForDecision", "AutoModelForImageTextToText", "AutoModelForCausalLM")

    @classmethod
    def find_head(cls, source: ModelSource) -> Any:
        """Return the class of a model with a head for decisions, else that of one that generates text."""
        config, auto_class = load_config(source), transformers.AutoModelForDecision
        known = auto_class._model_mapping
        head = known.get(type(config), None)
        if head is None or isinstance(config, head.config_class):
            return super().find_head(source)
        found, _ = head.checkpoint_config(source.directory, local_files_only=True)
        return super().find_head(source) if found is not None else cls.first_head(cls.auto_classes[1:], source)

    @classmethod
    def load_parts(cls, source: ModelSource) -> dict[str, Any]:
        """Return the tokenizer, and the processor if the model takes images."""
        parts = {"tokenizer": load_tokenizer(source)}
        if any((source.directory / name).exists() for name in PROCESSOR_CONFIGS):
            parts["processor"] = load_processor(transformers.AutoProcessor, source, PROCESSOR.name)
        return parts

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        self._limit = input_token_limit(pipe.model, pipe.tokenizer)

    def prepare(self, value: Json, params: PipelineParams) -> PreparedRecord:
        """Return the prompts of the questions.

        Raises:
            RecordError: `wrong_type`, the questions are of another form; `too_long`; `missing_file`, an image is named
                by an address.
        """
        request = parse_fields(TASKS[self.name], value)
        if "assets" in request:
            request = {**request, "assets": _images(request["assets"])}
        try:
            [inputs] = self.preprocessed(request, params.preprocess)
        except ValueError as error:
            raise RecordError("wrong_type", f"The questions cannot be asked: {error}"[:1000]) from error
        longest = max(int(prompt["input_ids"].shape[1]) for prompt, _ in inputs["prompts"])
        if self._limit is not None and longest > self._limit:
            raise RecordError("too_long", f"A prompt has {longest} tokens; the model takes {self._limit}.")
        return PreparedRecord([inputs])

    def group(self, inputs: ModelInputs, params: PipelineParams) -> int:
        """Return a number that no other input has: `forward` takes the prompts of one record."""
        return id(inputs)

    def forward(self, batch: Sequence[ModelInputs], params: PipelineParams, monitor: RunMonitor) -> list[RowOutput]:
        """Score the options of one record."""
        monitor.tick()
        return [self.pipe.forward(dict(inputs)) for inputs in batch]


class DecisionRunner(ProcessorRunner):
    """A `transformers` pipeline that answers typed questions."""

    tasks = (Decision,)


def _images(assets: Json) -> dict[str, Any]:
    """Return the images of a record by their placeholders.

    Raises:
        RecordError: `wrong_type`; `missing_file`, an image is named by an address; `bad_image`.
    """
    if not isinstance(assets, Mapping):
        raise RecordError("wrong_type", "assets must be an object of images by their placeholders.")
    return {str(name): decode_image(_bytes_of(asset)) for name, asset in assets.items()}


def _bytes_of(asset: Json) -> bytes:
    data = asset.get("data_base64") if isinstance(asset, Mapping) else None
    try:
        return base64.b64decode(data or "-", validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise RecordError(
            "missing_file",
            'assets must hold images as {"type": "image", "data_base64": "..."}: workers do not open URLs or paths.',
        ) from error
