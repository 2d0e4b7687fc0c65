"""The runner of the tasks over images."""

from collections.abc import Mapping
from pathlib import Path

import transformers
from transformers import AutoImageProcessor

from common.tasks import find_task
from common.values import Json
from workers.runners.budget import TokenBudget
from workers.runners.image_tasks import IMAGE_TASKS
from workers.runners.loading import Source, load_model, load_part
from workers.runners.pipelines import PipelineRunner

_TASKS = {task.name: task for task in IMAGE_TASKS}


class ImageRunner(PipelineRunner):
    """A `transformers` pipeline over images, its steps called one by one."""

    def __init__(self, task: str, model: Path | None, device: str, load_params: Mapping[str, Json]) -> None:
        """Load the model with the head of `task`, and its image processor.

        Raises:
            ModelError: as `load_model` and `load_part`.
        """
        chosen = _TASKS[find_task(task).name]
        source = Source.of(task, model, load_params)
        self._model = load_model(
            getattr(transformers, chosen.auto_class), source, device, ignore_missing=chosen.ignore_missing
        )
        processor = load_part(AutoImageProcessor, source, "image processor")
        pipe = chosen.pipeline_class(model=self._model, image_processor=processor, task=chosen.name, device=device)
        self.task = chosen(pipe)
        self.budget = TokenBudget.of(device)
