"""The runner of the tasks over sound."""

from transformers import AutoFeatureExtractor

from workers.runners.media import MediaRunner
from workers.runners.sound_tasks import SOUND_TASKS


class SoundRunner(MediaRunner):
    """A `transformers` pipeline over sound."""

    tasks = SOUND_TASKS
    part_class = AutoFeatureExtractor
    part = ("feature_extractor", "feature extractor")
