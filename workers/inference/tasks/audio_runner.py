"""The runner of the tasks over sound."""

from transformers import AutoFeatureExtractor

from workers.inference.tasks.audio import AUDIO_TASKS
from workers.inference.tasks.media_runner import MediaRunner


class AudioRunner(MediaRunner):
    """A `transformers` pipeline over sound."""

    tasks = AUDIO_TASKS
    part_class = AutoFeatureExtractor
    part = ("feature_extractor", "feature extractor")
