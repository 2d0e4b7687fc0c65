"""Image tasks. Masks and maps are PNG files."""

import io
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from transformers import pipelines as hf

from common.errors import ModelError, RecordError
from common.media_types import HEAD_BYTES, detect_format, formats
from common.records import FileInput, Json, unpack_files
from common.tasks import TASKS
from workers.inference.core.runner import RunMonitor
from workers.inference.loading.loader import invented_weights
from workers.inference.tasks.media_task import MediaTask
from workers.inference.tasks.pipeline_task import PipelineParams, PreparedRecord, RowOutput
from workers.inference.tasks.processor_runner import IMAGE_PROCESSOR, ProcessorRunner
from workers.inference.tasks.zero_shot_media import ZeroShotMediaTask
from workers.inference.text.fields import parse_fields
from workers.inference.text.truncation import ModelInputs, input_token_limit, token_count


def decode_image(blob: bytes) -> Image.Image:
    """Return the image, fully decoded, from untrusted bytes.

    Raises:
        RecordError: `bad_image`, it is not an image, is damaged, or has more pixels than Pillow considers safe
            (`PIL.Image.MAX_IMAGE_PIXELS`).
    """
    found = detect_format("image", blob[:HEAD_BYTES])
    if found is None:
        raise RecordError("bad_image", f"The file does not begin like an image; expected one of {formats('image')}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(blob), formats=(found,))
            image.load()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise RecordError("bad_image", f"The image is too large: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # untrusted bytes: decoders may raise anything
        raise RecordError("bad_image", f"The {found} image cannot be decoded: {error}"[:1000]) from error
    return image


class ImageTask(MediaTask):
    """A task over images."""

    processor = IMAGE_PROCESSOR

    def decode(self, blob: bytes) -> Any:
        """Return the image."""
        return decode_image(blob)


class ImageClassification(ImageTask):
    """Labels and their scores for an image."""

    name = "image-classification"
    pipeline_class = hf.ImageClassificationPipeline
    auto_classes = ("AutoModelForImageClassification",)


class ZeroShotImageClassification(ZeroShotMediaTask, ImageTask):
    """Scores for the user's own labels."""

    name = "zero-shot-image-classification"
    pipeline_class = hf.ZeroShotImageClassificationPipeline
    auto_classes = ("AutoModelForZeroShotImageClassification",)


class ObjectDetection(ImageTask):
    """The objects in an image, each with a label, a score and a box in pixels of the original."""

    name = "object-detection"
    pipeline_class = hf.ObjectDetectionPipeline
    auto_classes = ("AutoModelForObjectDetection",)


class ZeroShotObjectDetection(ImageTask):
    """The objects of the user's own labels; each label is a forward pass."""

    name = "zero-shot-object-detection"
    pipeline_class = hf.ZeroShotObjectDetectionPipeline
    auto_classes = ("AutoModelForZeroShotObjectDetection",)
    needs_tokenizer = True
    own_params = frozenset({"candidate_labels"})
    per_record_inputs = ("target_size", "candidate_label")

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        self._label_limit = input_token_limit(pipe.model, pipe.tokenizer)

    def preprocess(self, media: Any, fields: Mapping[str, Json], params: PipelineParams) -> PreparedRecord:
        """Return the image with each of its labels.

        Raises:
            RecordError: `too_long`, a label has more tokens than the model takes.
        """
        labels = self.zero_shot_params(fields, params)[0]["candidate_labels"]
        inputs = self.preprocessed({"image": media, "candidate_labels": labels}, params.preprocess)
        longest = max(token_count(each) for each in inputs)
        if self._label_limit is not None and longest > self._label_limit:
            raise RecordError("too_long", f"A label has {longest} tokens; the model takes {self._label_limit}.")
        return PreparedRecord(inputs)

    def row(self, outputs: Mapping[str, Any], number: int, inputs: ModelInputs) -> RowOutput:
        """Take one record out of the batch, as a dictionary: `postprocess` makes its own object of it."""
        return dict(super().row(outputs, number, inputs))


class MaskGeneration(ImageTask):
    """Masks of everything in an image, the pipeline's arrays of True and False as PNG."""

    name = "mask-generation"
    gives_plain_values = True
    pipeline_class = hf.MaskGenerationPipeline
    auto_classes = ("AutoModelForMaskGeneration",)
    libraries = (("torchvision", "vision"),)  # its non-maximum suppression

    def group(self, inputs: ModelInputs, params: PipelineParams) -> int:
        """Return a number that no other input has: `forward` filters the masks of one image."""
        return id(inputs)

    def row(self, outputs: Mapping[str, Any], number: int, inputs: ModelInputs) -> RowOutput:
        """Return the masks of one grid of points."""
        return dict(outputs)

    def postprocess(self, rows: Sequence[RowOutput], record: PreparedRecord, params: PipelineParams) -> Json:
        """Return the masks as PNG, each with its score, on demand with its box."""
        found = super().postprocess(rows, record, params)
        masks = [
            {"mask": _png(Image.fromarray(np.asarray(mask, dtype=np.uint8) * 255)), "score": float(score)}
            for mask, score in zip(found["masks"], found["scores"], strict=True)
        ]
        for mask, box in zip(masks, found.get("bounding_boxes", ()), strict=False):
            mask["box"] = dict(zip(("xmin", "ymin", "xmax", "ymax"), (int(side) for side in box), strict=True))
        return masks


class KeypointMatching(ImageTask):
    """Points of one image with the same points in another."""

    name = "keypoint-matching"
    pipeline_class = hf.KeypointMatchingPipeline
    auto_classes = ("AutoModelForKeypointMatching",)

    def prepare(self, value: Json, params: PipelineParams) -> PreparedRecord:
        """Return the two images, prepared as a pair."""
        blobs = unpack_files(value.blob, 2) if isinstance(value, FileInput) else None
        fields = parse_fields(TASKS[self.name], value.input if isinstance(value, FileInput) else value)
        if blobs is None:
            blobs = [self.files.read(fields[name]) for name in ("image", "second_image")]
        return PreparedRecord(self.preprocessed([self.decode(blob) for blob in blobs], params.preprocess))

    def group(self, inputs: ModelInputs, params: PipelineParams) -> int:
        """Return a number that no other input has: pairs have points of their own number."""
        return id(inputs)

    def tokens(self, inputs: ModelInputs, params: PipelineParams) -> int:
        """Return the number of text tokens that the pair counts as."""
        return super().tokens(inputs["model_inputs"], params)

    def forward(self, batch: Sequence[ModelInputs], params: PipelineParams, monitor: RunMonitor) -> list[RowOutput]:
        """Match the points of one pair."""
        monitor.tick()
        return [self.pipe.forward(inputs) for inputs in batch]


class ImageSegmentation(ImageTask):
    """The segments of an image, each with a label, a score and a mask of the size of the original."""

    name = "image-segmentation"
    gives_plain_values = True
    pipeline_class = hf.ImageSegmentationPipeline
    auto_classes = (
        "AutoModelForImageSegmentation",
        "AutoModelForSemanticSegmentation",
        "AutoModelForInstanceSegmentation",
        "AutoModelForUniversalSegmentation",
    )

    def postprocess(self, rows: Sequence[RowOutput], record: PreparedRecord, params: PipelineParams) -> Json:
        """Return the segments, their masks as PNG."""
        return [part | {"mask": _png(part["mask"])} for part in super().postprocess(rows, record, params)]


class DepthEstimation(ImageTask):
    """The distance of each pixel: a gray image, the nearest white; on demand the model's own numbers."""

    name = "depth-estimation"
    gives_plain_values = True
    pipeline_class = hf.DepthEstimationPipeline
    auto_classes = ("AutoModelForDepthEstimation",)

    def postprocess(self, rows: Sequence[RowOutput], record: PreparedRecord, params: PipelineParams) -> Json:
        """Return the image as PNG."""
        found = super().postprocess(rows, record, params)
        numbers = {"predicted_depth": found["predicted_depth"].tolist()} if params.params.get("predicted_depth") else {}
        return numbers | {"depth": _png(found["depth"])}


class ImageFeatureExtraction(ImageTask):
    """The hidden states of every patch, or with `pool` one vector."""

    name = "image-feature-extraction"
    pipeline_class = hf.ImageFeatureExtractionPipeline
    auto_classes = ("AutoModel",)
    ignore_missing = (r"(^|\.)pooler\.",)
    gives_plain_values = True

    def parse_params(self, params: Mapping[str, Json]) -> PipelineParams:
        """Return the job's parameters.

        Raises:
            ModelError: `bad_param`; `missing_weights`, pooling is requested and the pooler is untrained.
        """
        parsed = super().parse_params(params)
        invented = invented_weights(self.pipe.model) if params.get("pool") else []
        if invented:
            raise ModelError(
                "missing_weights",
                f"The model was saved without its pooler ({invented[0]}), which pool=true needs. "
                "Leave out pool, or use a model with a trained pooler.",
            )
        return parsed

    def output_type(self, params: Mapping[str, Json]) -> Any:
        """Return a list of as many numbers as the pooler gives for a black image; None without `pool`."""
        return pa.list_(pa.float32(), self._pooled_width) if self.parse_params(params).params.get("pool") else None

    @cached_property
    def _pooled_width(self) -> int:
        return int(self.pipe(Image.new("RGB", (224, 224)), pool=True, return_tensors=True).numel())


class ImageRunner(ProcessorRunner):
    """A `transformers` pipeline over images."""

    tasks = (
        ImageClassification,
        ZeroShotImageClassification,
        ObjectDetection,
        ZeroShotObjectDetection,
        MaskGeneration,
        KeypointMatching,
        ImageSegmentation,
        DepthEstimation,
        ImageFeatureExtraction,
    )


def _png(image: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
