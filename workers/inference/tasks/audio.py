"""The tasks of `transformers.pipeline` over sound."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import pipelines as hf

from common.errors import ModelError, RecordError
from common.records import Json
from common.task_params import SPEECH_GENERATE_PARAMS
from workers.inference.generation.limits import keep_within
from workers.inference.tasks.audio_decoding import sound_of
from workers.inference.tasks.media_task import MediaTask
from workers.inference.tasks.pipeline_task import Prepared, Row, Settings
from workers.inference.tasks.zero_shot_media import LabelledTask
from workers.inference.text.collate import row_of
from workers.inference.text.truncation import Inputs

logger = logging.getLogger(__name__)

#: Seconds of sound of which most models make a frame.
_FRAME = 0.025


class SoundTask(MediaTask):
    """A task over sound."""

    per_token_numbers = 320  # samples: 20 ms at 16 kHz

    def decoded(self, blob: bytes) -> Any:
        """Return the samples at the model's rate.

        Raises:
            RecordError: `bad_audio`, also where the sound is too short for the model to make a frame of it.
        """
        rate = int(self.pipe.feature_extractor.sampling_rate)
        samples = sound_of(blob, rate)
        seconds = len(samples) / rate
        if seconds < _FRAME and not self._makes_a_frame(samples, rate):
            raise RecordError(
                "bad_audio", f"The sound lasts {1000 * seconds:.3g} ms; this model takes {1000 * _FRAME:g} ms or more."
            )
        return samples

    def _makes_a_frame(self, samples: Any, rate: int) -> bool:
        try:
            self.pipe.feature_extractor(samples, sampling_rate=rate)
        except Exception:  # extractors raise what they like over a sound shorter than their window
            logger.debug("%d samples are too few", len(samples), exc_info=True)
            return False
        frames = getattr(self.pipe.model, "_get_feat_extract_output_lengths", None)
        return frames is None or int(frames(torch.tensor(len(samples)))) > 0


class AudioClassification(SoundTask):
    """Labels and their scores for a sound."""

    name = "audio-classification"
    pipeline_class = hf.AudioClassificationPipeline
    auto_classes = ("AutoModelForAudioClassification",)


class ZeroShotAudioClassification(LabelledTask, SoundTask):
    """Scores for labels of the user's own."""

    name = "zero-shot-audio-classification"
    pipeline_class = hf.ZeroShotAudioClassificationPipeline
    auto_classes = ("AutoModel",)


class SpeechRecognition(SoundTask):
    """What is said, with `return_timestamps` also when."""

    name = "automatic-speech-recognition"
    pipeline_class = hf.AutomaticSpeechRecognitionPipeline
    auto_classes = ("AutoModelForCTC", "AutoModelForSpeechSeq2Seq")
    needs_tokenizer = True

    def __init__(self, pipe: Any) -> None:
        """Take the pipeline, which gives one text for each sound."""
        super().__init__(pipe)
        if pipe.type != "ctc":
            pipe.model.generation_config.num_return_sequences = 1

    def settings(self, params: Mapping[str, Json]) -> Settings:
        """Return the job's parameters; those of `generate` only for a model that generates."""
        settings = super().settings(params)
        idle = sorted(SPEECH_GENERATE_PARAMS.keys() & params.keys()) if self.pipe.type == "ctc" else []
        if idle:
            raise ModelError("bad_param", f"{idle[0]} is for models that generate text, such as Whisper; this is CTC.")
        if self.most_new_tokens is not None and self.pipe.type != "ctc":
            keep_within(self.name, params, self.pipe.model.generation_config, self.most_new_tokens)
        return settings

    def prepared(self, media: Any, fields: Mapping[str, Json], settings: Settings) -> Prepared:
        """Return the sound, or its windows where `chunk_length_s` asks for them."""
        return Prepared([dict(part) for part in self.pipe.preprocess(media, **settings.preprocess)])

    def group(self, inputs: Inputs, settings: Settings) -> int:
        """Return a number that only inputs share which give the same in one batch as alone."""
        alone = self.pipe.type != "ctc" and any(
            settings.forward.get(name) for name in ("return_timestamps", "return_language")
        )
        return id(inputs) if alone or self._is_long(inputs) else super().group(inputs, settings)

    def joined(self, batch: Sequence[Inputs]) -> Inputs:
        """Return one batch; of windows, each with where it overlaps its neighbours."""
        joined = super().joined(batch)
        if "stride" in joined and len(batch) > 1:
            joined["stride"] = [inputs["stride"] for inputs in batch]
        return joined

    def row(self, outputs: Mapping[str, Any], number: int, inputs: Inputs) -> Row:
        """Take one window out of the batch, as a dictionary: `postprocess` takes its parts out."""
        row = {name: value if name == "lang_id" else row_of(value, number) for name, value in outputs.items()}
        row["is_last"] = inputs["is_last"]
        if "stride" in row:
            own = outputs["stride"]
            row["stride"] = own[number] if isinstance(own, list) else own
        return row

    def finish(self, rows: Sequence[Row], prepared: Prepared, settings: Settings) -> Json:
        """Return the text of all windows."""
        return self.pipe.postprocess(list(rows), **settings.postprocess)

    def _is_long(self, inputs: Inputs) -> bool:
        """Whether Whisper works through the sound in several steps of its own."""
        if self.pipe.type != "seq2seq_whisper":
            return False
        return bool(inputs["input_features"].shape[-1] > self.pipe.feature_extractor.nb_max_frames)


SOUND_TASKS: Mapping[str, type[MediaTask]] = {
    task.name: task for task in (AudioClassification, ZeroShotAudioClassification, SpeechRecognition)
}
