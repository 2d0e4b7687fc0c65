"""The tasks of `transformers.pipeline` over sound."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import pipelines as hf

from common.errors import ModelError, RecordError
from common.records import Json
from common.task_params import SPEECH_GENERATE_PARAMS
from workers.inference.generation.limits import apply_token_limit
from workers.inference.tasks.audio_decoding import decode_audio
from workers.inference.tasks.media_task import MediaTask
from workers.inference.tasks.pipeline_task import PipelineParams, PreparedRecord, RowOutput
from workers.inference.tasks.zero_shot_media import ZeroShotMediaTask
from workers.inference.text.collate import take_row
from workers.inference.text.truncation import ModelInputs

logger = logging.getLogger(__name__)

#: Seconds of sound of which most models make a frame.
_FRAME = 0.025


class AudioTask(MediaTask):
    """A task over sound."""

    values_per_token = 320  # samples: 20 ms at 16 kHz

    def decode(self, blob: bytes) -> Any:
        """Return the samples at the model's rate.

        Raises:
            RecordError: `bad_audio`, also where the sound is too short for the model to make a frame of it.
        """
        rate = int(self.pipe.feature_extractor.sampling_rate)
        samples = decode_audio(blob, rate)
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


class AudioClassification(AudioTask):
    """Labels and their scores for a sound."""

    name = "audio-classification"
    pipeline_class = hf.AudioClassificationPipeline
    auto_classes = ("AutoModelForAudioClassification",)


class ZeroShotAudioClassification(ZeroShotMediaTask, AudioTask):
    """Scores for labels of the user's own."""

    name = "zero-shot-audio-classification"
    pipeline_class = hf.ZeroShotAudioClassificationPipeline
    auto_classes = ("AutoModel",)


class SpeechRecognition(AudioTask):
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

    def parsed_params(self, params: Mapping[str, Json]) -> PipelineParams:
        """Return the job's parameters; those of `generate` only for a model that generates."""
        parsed_params = super().parsed_params(params)
        idle = sorted(SPEECH_GENERATE_PARAMS.keys() & params.keys()) if self.pipe.type == "ctc" else []
        if idle:
            raise ModelError("bad_param", f"{idle[0]} is for models that generate text, such as Whisper; this is CTC.")
        if self.most_new_tokens is not None and self.pipe.type != "ctc":
            apply_token_limit(self.name, params, self.pipe.model.generation_config, self.most_new_tokens)
        return parsed_params

    def prepared(self, media: Any, fields: Mapping[str, Json], parsed_params: PipelineParams) -> PreparedRecord:
        """Return the sound, or its windows where `chunk_length_s` asks for them."""
        return PreparedRecord([dict(part) for part in self.pipe.preprocess(media, **parsed_params.preprocess)])

    def group(self, inputs: ModelInputs, parsed_params: PipelineParams) -> int:
        """Return a number that only inputs share which give the same in one batch as alone."""
        alone = self.pipe.type != "ctc" and any(
            parsed_params.forward.get(name) for name in ("return_timestamps", "return_language")
        )
        return id(inputs) if alone or self._is_long(inputs) else super().group(inputs, parsed_params)

    def collate(self, batch: Sequence[ModelInputs]) -> ModelInputs:
        """Return one batch; of windows, each with where it overlaps its neighbours."""
        collate = super().collate(batch)
        if "stride" in collate and len(batch) > 1:
            collate["stride"] = [inputs["stride"] for inputs in batch]
        return collate

    def row(self, outputs: Mapping[str, Any], number: int, inputs: ModelInputs) -> RowOutput:
        """Take one window out of the batch, as a dictionary: `postprocess` takes its parts out."""
        row = {name: value if name == "lang_id" else take_row(value, number) for name, value in outputs.items()}
        row["is_last"] = inputs["is_last"]
        if "stride" in row:
            own = outputs["stride"]
            row["stride"] = own[number] if isinstance(own, list) else own
        return row

    def finish(self, rows: Sequence[RowOutput], prepared: PreparedRecord, parsed_params: PipelineParams) -> Json:
        """Return the text of all windows."""
        return self.pipe.postprocess(list(rows), **parsed_params.postprocess)

    def _is_long(self, inputs: ModelInputs) -> bool:
        """Whether Whisper works through the sound in several steps of its own."""
        if self.pipe.type != "seq2seq_whisper":
            return False
        return bool(inputs["input_features"].shape[-1] > self.pipe.feature_extractor.nb_max_frames)


AUDIO_TASKS: Mapping[str, type[MediaTask]] = {
    task.name: task for task in (AudioClassification, ZeroShotAudioClassification, SpeechRecognition)
}
