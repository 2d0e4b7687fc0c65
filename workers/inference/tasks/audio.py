"""Audio tasks. Files are decoded by libsndfile in this process, without ffmpeg."""

import io
import logging
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from scipy.signal import resample_poly
from transformers import pipelines as hf
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from common.errors import ModelError, RecordError
from common.media_types import HEAD_BYTES, detect_format, formats
from common.records import Json
from common.task_params import SPEECH_GENERATE_PARAMS
from workers.inference.generation.limits import apply_token_limit
from workers.inference.tasks.media_task import MediaTask
from workers.inference.tasks.pipeline_task import PipelineParams, RowOutput
from workers.inference.tasks.processor_runner import FEATURE_EXTRACTOR, ProcessorRunner
from workers.inference.tasks.zero_shot_media import ZeroShotMediaTask
from workers.inference.text.collate import take_row
from workers.inference.text.truncation import ModelInputs

logger = logging.getLogger(__name__)

#: Samples of all channels in one file at most, 512 MiB once decoded: more than two hours at 16 kHz.
MAX_SAMPLES = 2**27
#: Sample rates that are resampled, in Hz; no recorder uses others.
_RATES = (100, 1_000_000)
#: The filter of a resampling is about twenty times as long as its factors. With this bound the rate is off by less than
#: one in 40,000, and the filter of an odd rate does not fill the memory.
_MAX_FACTOR = 20_000
#: Seconds of audio in one frame of most models.
_FRAME_SECONDS = 0.025

Samples = npt.NDArray[np.float32]


def decode_audio(blob: bytes, rate: int) -> Samples:
    """Return untrusted bytes as samples of shape (samples,), the channels averaged, at `rate` per second.

    Raises:
        RecordError: `bad_audio`, it is not audio, is damaged, empty, or too long.
    """
    if detect_format("audio", blob[:HEAD_BYTES]) is None:
        raise RecordError("bad_audio", f"The file does not begin like audio; expected one of {formats('audio')}.")
    try:
        with soundfile.SoundFile(io.BytesIO(blob)) as file:
            own = int(file.samplerate)
            if file.frames * file.channels > MAX_SAMPLES:
                raise RecordError("bad_audio", f"The audio is too long: more than {MAX_SAMPLES:,} samples; cut it.")
            samples = file.read(frames=MAX_SAMPLES // file.channels, dtype="float32", always_2d=True).mean(axis=1)
    except (soundfile.SoundFileError, RuntimeError, ValueError) as error:
        raise RecordError("bad_audio", f"The audio cannot be decoded: {error}"[:1000]) from error
    if not len(samples):
        raise RecordError("bad_audio", "The audio is empty.")
    return samples if own == rate else _resample(samples, own, rate)


def audio_seconds(blob: bytes) -> float:
    """Return the length of a file that `decode_audio` can read."""
    info = soundfile.info(io.BytesIO(blob))
    return float(info.frames / info.samplerate)


def _resample(samples: Samples, own: int, rate: int) -> Samples:
    if not _RATES[0] <= own <= _RATES[1]:
        found = f"The audio has a sample rate of {own:,} Hz; expected {_RATES[0]:,} to {_RATES[1]:,} Hz."
        raise RecordError("bad_audio", found)
    if len(samples) * rate // own > MAX_SAMPLES:
        raise RecordError("bad_audio", f"The audio is too long: more than {MAX_SAMPLES:,} samples at {rate:,} Hz.")
    ratio = Fraction(rate, own).limit_denominator(_MAX_FACTOR)
    resampled: Samples = resample_poly(samples, ratio.numerator, ratio.denominator).astype(np.float32)
    return resampled


class AudioTask(MediaTask):
    """A task over audio."""

    processor = FEATURE_EXTRACTOR
    values_per_token = 320  # samples: 20 ms at 16 kHz

    def decode(self, blob: bytes) -> Any:
        """Return the samples at the model's rate.

        Raises:
            RecordError: `bad_audio`, also where the audio is too short for one frame of the model.
        """
        rate = int(self.pipe.feature_extractor.sampling_rate)
        samples = decode_audio(blob, rate)
        seconds = len(samples) / rate
        if seconds < _FRAME_SECONDS and not self._fills_a_frame(samples, rate):
            raise RecordError(
                "bad_audio",
                f"The audio lasts {1000 * seconds:.3g} ms; this model takes {1000 * _FRAME_SECONDS:g} ms or more.",
            )
        return samples

    def _fills_a_frame(self, samples: Samples, rate: int) -> bool:
        try:
            self.pipe.feature_extractor(samples, sampling_rate=rate)
        except Exception:  # extractors may raise anything over audio shorter than their window
            logger.debug("%d samples are too few", len(samples), exc_info=True)
            return False
        frames = getattr(self.pipe.model, "_get_feat_extract_output_lengths", None)
        return frames is None or int(frames(torch.tensor(len(samples)))) > 0


class AudioClassification(AudioTask):
    """Labels and their scores for audio."""

    name = "audio-classification"
    pipeline_class = hf.AudioClassificationPipeline
    auto_classes = ("AutoModelForAudioClassification",)


class ZeroShotAudioClassification(ZeroShotMediaTask, AudioTask):
    """Scores for the user's own labels."""

    name = "zero-shot-audio-classification"
    pipeline_class = hf.ZeroShotAudioClassificationPipeline
    auto_classes = ("AutoModel",)


class SpeechRecognition(AudioTask):
    """The spoken text, with `return_timestamps` also its times."""

    name = "automatic-speech-recognition"
    pipeline_class = hf.AutomaticSpeechRecognitionPipeline
    auto_classes = ("AutoModelForCTC", "AutoModelForSpeechSeq2Seq")
    needs_tokenizer = True

    def __init__(self, pipe: Any) -> None:
        """Take the pipeline, which returns one text for each file."""
        super().__init__(pipe)
        if pipe.type != "ctc":
            pipe.model.generation_config.num_return_sequences = 1

    def parse_params(self, params: Mapping[str, Json]) -> PipelineParams:
        """Return the job's parameters; those of `generate` only for a model that generates."""
        parsed = super().parse_params(params)
        idle = sorted(SPEECH_GENERATE_PARAMS.keys() & params.keys()) if self.pipe.type == "ctc" else []
        if idle:
            raise ModelError("bad_param", f"{idle[0]} is for models that generate text, such as Whisper; this is CTC.")
        if self.pipe.type != "ctc":
            self._check_language(params)
            apply_token_limit(self.name, params, self.pipe.model.generation_config, self.max_new_tokens)
        return parsed

    def _check_language(self, params: Mapping[str, Json]) -> None:
        """Check `language` and `task` as Whisper does, which raises only while it generates."""
        asked = [name for name in ("language", "task") if name in params]
        if not asked:
            return
        config = self.pipe.model.generation_config
        known = getattr(config, "lang_to_id", None)
        if self.pipe.type != "seq2seq_whisper" or not known or not getattr(config, "is_multilingual", True):
            raise ModelError("bad_param", f"{asked[0]} is for multilingual models of Whisper, which this one is not.")
        language = params.get("language", "").lower()
        if language and f"<|{TO_LANGUAGE_CODE.get(language, language)}|>" not in known and language not in known:
            codes = ", ".join(sorted(token.strip("<|>") for token in known))
            raise ModelError("bad_param", f"language is {params['language']!r:.100}; this model knows {codes}.")

    def group(self, inputs: ModelInputs, params: PipelineParams) -> int:
        """Return a number that inputs share only if they give the same in one batch as alone."""
        single = self.pipe.type != "ctc" and any(
            params.forward.get(name) for name in ("return_timestamps", "return_language")
        )
        return id(inputs) if single or self._is_long(inputs) else super().group(inputs, params)

    def collate(self, batch: Sequence[ModelInputs]) -> ModelInputs:
        """Return one batch; of windows, each with its overlap with its neighbors."""
        joined = super().collate(batch)
        if "stride" in joined and len(batch) > 1:
            joined["stride"] = [inputs["stride"] for inputs in batch]
        return joined

    def row(self, outputs: Mapping[str, Any], number: int, inputs: ModelInputs) -> RowOutput:
        """Take one window out of the batch, as a dictionary: `postprocess` pops its parts."""
        row = {name: value if name == "lang_id" else take_row(value, number) for name, value in outputs.items()}
        row["is_last"] = inputs["is_last"]
        if "stride" in row:
            own = outputs["stride"]
            row["stride"] = own[number] if isinstance(own, list) else own
        return row

    def _is_long(self, inputs: ModelInputs) -> bool:
        """Whether Whisper takes the audio in several steps of its own."""
        if self.pipe.type != "seq2seq_whisper":
            return False
        return bool(inputs["input_features"].shape[-1] > self.pipe.feature_extractor.nb_max_frames)


class AudioRunner(ProcessorRunner):
    """A `transformers` pipeline over audio."""

    tasks = (AudioClassification, ZeroShotAudioClassification, SpeechRecognition)
