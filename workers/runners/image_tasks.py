"""The tasks of `transformers.pipeline` over images."""

from collections.abc import Mapping
from typing import Any, ClassVar

from transformers import pipelines as hf

from workers.runners.decoding import image_of
from workers.runners.kinds import COUNT, Kind, one_of
from workers.runners.media_tasks import MediaTask


class ImageTask(MediaTask):
    """A task over images."""

    def decoded(self, blob: bytes) -> Any:
        """Return the image."""
        return image_of(blob)


class ImageClassification(ImageTask):
    """Labels and their scores for an image."""

    name = "image-classification"
    pipeline_class = hf.ImageClassificationPipeline
    auto_class = "AutoModelForImageClassification"
    known: ClassVar[Mapping[str, Kind]] = {
        "top_k": COUNT,
        "function_to_apply": one_of("sigmoid", "softmax", "none"),
    }


IMAGE_TASKS = (ImageClassification,)
