"""The runner of the tasks over images."""

from transformers import AutoImageProcessor

from workers.inference.tasks.images import IMAGE_TASKS
from workers.inference.tasks.media_runner import MediaRunner


class ImageRunner(MediaRunner):
    """A `transformers` pipeline over images."""

    tasks = IMAGE_TASKS
    part_class = AutoImageProcessor
    part = ("image_processor", "image processor")
