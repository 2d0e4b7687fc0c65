"""The runner of tasks over files: a `transformers` pipeline with what prepares images or sound for it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import transformers

from common.errors import ModelError
from common.records import Json
from common.tasks import find_task
from workers.inference.core.token_budget import TokenBudget
from workers.inference.models.loader import ModelSource, load_config, load_model, load_processor, load_tokenizer
from workers.inference.tasks.media_task import MediaTask
from workers.inference.tasks.pipeline_runner import PipelineRunner
from workers.inference.tasks.shared_files import SharedFiles


class MediaRunner(PipelineRunner):
    """A `transformers` pipeline over files of one kind, its steps called one by one."""

    tasks: ClassVar[Mapping[str, type[MediaTask]]]
    #: The class that prepares files, the pipeline's argument for it, and its name for people.
    part_class: ClassVar[Any]
    part: ClassVar[tuple[str, str]]

    task: MediaTask

    def __init__(self, task: str, model: Path | None, device: str, load_params: Mapping[str, Json]) -> None:
        """Load the model with the head of `task`, and what prepares its inputs.

        Raises:
            ModelError: as `load_model`, `load_processor` and `load_tokenizer`; `missing_weights`, the architecture
            cannot
                do the task.
        """
        chosen = self.tasks[find_task(task).name]
        source = ModelSource.of(task, model, load_params)
        auto_class = _head(chosen, source)
        self._model = load_model(auto_class, source, device, ignore_missing=chosen.ignore_missing)
        argument, words = self.part
        parts = {argument: load_processor(self.part_class, source, words)}
        if chosen.needs_tokenizer:
            parts["tokenizer"] = load_tokenizer(source)
        try:
            pipe = chosen.pipeline_class(model=self._model, task=chosen.name, device=device, **parts)
        except ValueError as error:
            raise ModelError("missing_weights", f"This model does not do {chosen.name}: {error}"[:1000]) from error
        self.task = chosen(pipe)
        self.task.most_new_tokens = source.most_new_tokens
        self.task.files = SharedFiles(tuple(load_params.get("shared", ())), int(load_params.get("most_file_bytes", 0)))
        self.budget = TokenBudget.of(device, generates=True)  # what is measured with texts says nothing of files

    def output_type(self, params: Mapping[str, Json]) -> Any:
        """Return the Arrow type of the task's outputs, None where they travel as JSON."""
        return self.task.output_type_for(params)


def _head(chosen: type[MediaTask], source: ModelSource) -> Any:
    """Return the first of the task's `AutoModel` classes that knows the model's architecture."""
    classes = [getattr(transformers, name) for name in chosen.auto_classes]
    if len(classes) == 1:
        return classes[0]
    config = type(load_config(source))
    return next((auto_class for auto_class in classes if config in auto_class._model_mapping), classes[0])
