"""The tasks of `transformers.pipeline` over images. Masks and maps are PNG files as base64, for JSON has no images."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from transformers import pipelines as hf

from common.errors import ModelError
from common.records import Json
from workers.inference.models.loader import invented_weights
from workers.inference.tasks.image_decoding import decode_image
from workers.inference.tasks.media_task import MediaTask
from workers.inference.tasks.pipeline_task import PipelineParams, PreparedRecord, RowOutput
from workers.inference.tasks.zero_shot_media import ZeroShotMediaTask


class ImageTask(MediaTask):
    """A task over images."""

    def decode(self, blob: bytes) -> Any:
        """Return the image."""
        return decode_image(blob)


class ImageClassification(ImageTask):
    """Labels and their scores for an image."""

    name = "image-classification"
    pipeline_class = hf.ImageClassificationPipeline
    auto_classes = ("AutoModelForImageClassification",)


class ZeroShotImageClassification(ZeroShotMediaTask, ImageTask):
    """Scores for labels of the user's own."""

    name = "zero-shot-image-classification"
    pipeline_class = hf.ZeroShotImageClassificationPipeline
    auto_classes = ("AutoModelForZeroShotImageClassification",)


class ObjectDetection(ImageTask):
    """The things in an image, each with a label, a score and a box in pixels of the original."""

    name = "object-detection"
    pipeline_class = hf.ObjectDetectionPipeline
    auto_classes = ("AutoModelForObjectDetection",)


class ImageSegmentation(ImageTask):
    """The parts of an image, each with a label, a score and a mask of the size of the original."""

    name = "image-segmentation"
    pipeline_class = hf.ImageSegmentationPipeline
    auto_classes = (
        "AutoModelForImageSegmentation",
        "AutoModelForSemanticSegmentation",
        "AutoModelForInstanceSegmentation",
        "AutoModelForUniversalSegmentation",
    )

    def finish(self, rows: Sequence[RowOutput], prepared: PreparedRecord, parsed_params: PipelineParams) -> Json:
        """Return the parts, their masks as PNG."""
        return [part | {"mask": _png(part["mask"])} for part in super().finish(rows, prepared, parsed_params)]


class DepthEstimation(ImageTask):
    """How far away each pixel is: a grey picture, the nearest white; on demand the model's own numbers."""

    name = "depth-estimation"
    pipeline_class = hf.DepthEstimationPipeline
    auto_classes = ("AutoModelForDepthEstimation",)

    def finish(self, rows: Sequence[RowOutput], prepared: PreparedRecord, parsed_params: PipelineParams) -> Json:
        """Return the picture as PNG."""
        found = super().finish(rows, prepared, parsed_params)
        numbers = (
            {"predicted_depth": found["predicted_depth"].tolist()}
            if parsed_params.params.get("predicted_depth")
            else {}
        )
        return numbers | {"depth": _png(found["depth"])}


class ImageFeatureExtraction(ImageTask):
    """The hidden states of every patch, or with `pool` one vector."""

    name = "image-feature-extraction"
    pipeline_class = hf.ImageFeatureExtractionPipeline
    auto_classes = ("AutoModel",)
    ignore_missing = (r"(^|\.)pooler\.",)
    output_type = pa.list_(pa.list_(pa.list_(pa.float32())))

    def parsed_params(self, params: Mapping[str, Json]) -> PipelineParams:
        """Return the job's parameters.

        Raises:
            ModelError: `bad_param`; `missing_weights`, it is to be pooled by an untrained pooler.
        """
        parsed_params = super().parsed_params(params)
        invented = invented_weights(self.pipe.model) if params.get("pool") else []
        if invented:
            raise ModelError(
                "missing_weights",
                f"The model was saved without its pooler ({invented[0]}), which pool=true needs. "
                "Leave pool out, or take a model with a trained pooler.",
            )
        return parsed_params

    def output_type_for(self, params: Mapping[str, Json]) -> Any:
        """Return lists of float32, as deep as the pipeline's."""
        return self.output_type.value_type if params.get("pool") else self.output_type


IMAGE_TASKS: Mapping[str, type[MediaTask]] = {
    task.name: task
    for task in (
        ImageClassification,
        ZeroShotImageClassification,
        ObjectDetection,
        ImageSegmentation,
        DepthEstimation,
        ImageFeatureExtraction,
    )
}


def _png(image: Any) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
