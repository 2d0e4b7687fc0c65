"""Video tasks. Files are decoded by PyAV in this process, and no more of them than the model looks at."""

import io
import tempfile
from collections.abc import Mapping
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import transformers
from PIL import Image
from transformers import pipelines as hf
from transformers.utils import is_torchvision_available

from common.errors import ModelError, RecordError
from common.media_types import HEAD_BYTES, detect_format, formats
from common.records import Json
from workers.inference.loading.loader import ModelSource, load_processor
from workers.inference.tasks.media_task import MediaTask
from workers.inference.tasks.pipeline_task import PipelineParams, PreparedRecord
from workers.inference.tasks.processor_runner import IMAGE_PROCESSOR, Processor, ProcessorRunner

_VIDEO_PROCESSOR = Processor("video_processor", "AutoVideoProcessor", "video processor")


def read_frames(blob: bytes, indices: npt.NDArray[np.int64]) -> list[npt.NDArray[np.uint8]]:
    """Return frames of untrusted bytes, each of shape (height, width, 3).

    Args:
        blob: a video.
        indices: of the frames, rising, from 0.

    Raises:
        RecordError: `bad_video`, it is not a video, is damaged, has no frames or fewer than the last of these, or has
            larger frames than Pillow considers safe (`PIL.Image.MAX_IMAGE_PIXELS`).
    """
    if detect_format("video", blob[:HEAD_BYTES]) is None:
        raise RecordError("bad_video", f"The file does not begin like a video; expected one of {formats('video')}.")
    wanted, last = set(indices.tolist()), int(indices[-1])
    frames: list[npt.NDArray[np.uint8]] = []
    number = -1
    try:
        with av.open(io.BytesIO(blob), mode="r") as container:
            _check_size(container)
            for number, frame in enumerate(container.decode(video=0)):
                if number in wanted:
                    frames.append(np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8))
                if number == last:
                    return frames
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise RecordError("bad_video", f"The video cannot be decoded: {error}"[:1000]) from error
    if number < 0:
        raise RecordError("bad_video", "The video has no frames.")
    raise RecordError(
        "bad_video",
        f"The video has {number + 1} frames, and the model looks at {len(indices)} of the first {last + 1}. Use a "
        "longer video, or a smaller num_frames or frame_sampling_rate.",
    )


def _check_size(container: Any) -> None:
    if not container.streams.video:
        raise RecordError("bad_video", "The file has no video, only sound.")
    stream = container.streams.video[0]
    if stream.width * stream.height > (Image.MAX_IMAGE_PIXELS or np.inf):
        raise RecordError("bad_video", f"The video is too large: frames of {stream.width} by {stream.height} pixels.")


class VideoClassification(MediaTask):
    """Labels and their scores for a video."""

    name = "video-classification"
    pipeline_class = hf.VideoClassificationPipeline
    auto_classes = ("AutoModelForVideoClassification",)

    @classmethod
    def load_parts(cls, source: ModelSource) -> dict[str, Any]:
        """Return the video processor, or the image processor of older models and where there is no torchvision."""
        if is_torchvision_available():
            try:
                found = load_processor(transformers.AutoVideoProcessor, source, _VIDEO_PROCESSOR.name)
            except ModelError as error:
                if error.code != "no_processor":
                    raise
            else:
                return {_VIDEO_PROCESSOR.argument: found}
        found = load_processor(transformers.AutoImageProcessor, source, IMAGE_PROCESSOR.name)
        return {IMAGE_PROCESSOR.argument: found}

    def decode(self, blob: bytes) -> Any:
        """Return the bytes: how many frames are decoded depends on the job."""
        return blob

    def preprocess(self, media: Any, fields: Mapping[str, Json], params: PipelineParams) -> PreparedRecord:
        """Return the frames that the model looks at, ready to run."""
        count = params.preprocess.get("num_frames") or self.pipe.model.config.num_frames
        step = params.preprocess.get("frame_sampling_rate", 1)
        indices = np.linspace(0, count * step - 1, num=count, dtype=np.int64)
        if self.pipe.video_processor is None:
            frames = self.pipe.image_processor(read_frames(media, indices), return_tensors="pt")
            return PreparedRecord([dict(frames.to(self.pipe.dtype))])
        read_frames(media, indices[:1])  # refuses what is no video
        with tempfile.NamedTemporaryFile(suffix=".video") as file:  # the processor decodes by itself
            file.write(media)
            file.flush()
            return PreparedRecord(self.preprocessed(file.name, params.preprocess))


class VideoRunner(ProcessorRunner):
    """A `transformers` pipeline over video."""

    tasks = (VideoClassification,)
