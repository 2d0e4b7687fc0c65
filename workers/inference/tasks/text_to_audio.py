"""Speech, music and sounds from texts, as files. Each text runs alone: padding would change what is heard."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import soundfile
import torch
from transformers import AutoModelForTextToSpectrogram, AutoProcessor, SpeechT5HifiGan
from transformers import pipelines as hf

from common.errors import ModelError, RecordError
from common.params import check_params
from common.records import Json
from common.task_params import AUDIO_GENERATE_PARAMS, TASK_PARAMS
from common.tasks import TASKS
from workers.inference.core.runner import RunMonitor
from workers.inference.generation.limits import apply_token_limit
from workers.inference.generation.seeded_sampling import record_seed
from workers.inference.loading.loader import ModelSource, load_config, load_model, load_processor, load_tokenizer
from workers.inference.tasks.pipeline_task import PipelineParams, PreparedRecord, RowOutput
from workers.inference.tasks.processor_runner import PROCESSOR, ProcessorRunner, ProcessorTask
from workers.inference.text.fields import parse_fields
from workers.inference.text.tokenization import check_text
from workers.inference.text.truncation import ModelInputs, input_token_limit
from workers.models.file_references import PROCESSOR_CONFIGS

#: The folder of a model of spectrograms that holds what turns them into sound.
VOCODER = "vocoder"


@dataclass(frozen=True, slots=True)
class AudioParams(PipelineParams):
    """A job's parameters."""

    seed: int | None = None
    format: str = "wav"


class TextToAudio(ProcessorTask):
    """The sound of a text: a file of WAV or FLAC, and its sampling rate."""

    name = "text-to-audio"
    pipeline_class = hf.TextToAudioPipeline
    auto_classes = ("AutoModelForTextToWaveform", "AutoModelForTextToSpectrogram")
    gives_plain_values = True
    generates = True

    @classmethod
    def load_parts(cls, source: ModelSource) -> dict[str, Any]:
        """Return the tokenizer, with the processor and the vocoder where the model has them."""
        parts = {"tokenizer": load_tokenizer(source)}
        if any((source.directory / name).exists() for name in PROCESSOR_CONFIGS):
            parts["processor"] = load_processor(AutoProcessor, source, PROCESSOR.name)
        if _gives_spectrograms(source):
            parts["vocoder"] = _load_vocoder(source)
        return parts

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        if pipe.vocoder is not None:
            pipe.vocoder.to(device=pipe.model.device, dtype=pipe.model.dtype)
        limits = (input_token_limit(pipe.model, pipe.tokenizer), getattr(pipe.model.config, "max_text_positions", None))
        self.limit = min((limit for limit in limits if limit is not None), default=None)
        if pipe.sampling_rate is None:
            raise ModelError("not_a_model", "The model's configuration has no sampling rate for its sound.")

    def parse_params(self, params: Mapping[str, Json]) -> AudioParams:
        """Return the job's parameters; those of `generate` only for a model that generates.

        Raises:
            ModelError: `bad_param`.
        """
        checked = check_params(self.name, TASK_PARAMS[self.name], params)
        generate = {name: value for name, value in checked.items() if name in AUDIO_GENERATE_PARAMS}
        forward = {name: checked[name] for name in ("speaker_id",) if name in checked}
        if self.pipe.model.can_generate():
            apply_token_limit(self.name, generate, self.pipe.model.generation_config, self.max_new_tokens)
        elif generate:
            raise ModelError("bad_param", f"{min(generate)} is for models that generate tokens; this one does not.")
        parsed = self._split_params({"generate_kwargs": generate, "forward_params": forward})
        return AudioParams(
            params=checked,
            preprocess=parsed.preprocess,
            forward=parsed.forward,
            postprocess=parsed.postprocess,
            seed=checked.get("seed"),
            format=checked.get("format", "wav"),
        )

    def prepare(self, value: Json, params: PipelineParams) -> PreparedRecord:
        """Return the tokens of the text, with the voice that it is to have."""
        fields = parse_fields(TASKS[self.name], value)
        text = check_text(fields["text"], "text")
        [inputs] = self.preprocessed(text, params.preprocess)
        voice = fields.get("speaker_embeddings", params.params.get("speaker_embeddings"))
        if voice is not None:
            inputs["speaker_embeddings"] = torch.tensor([_voice(voice)], dtype=self.pipe.model.dtype)
        seed = cast("AudioParams", params).seed
        if seed is not None:
            inputs["record_seed"] = record_seed(seed, fields)
        return PreparedRecord([inputs])

    def group(self, inputs: ModelInputs, params: PipelineParams) -> int:
        """Return a number that no other input has."""
        return id(inputs)

    def forward(self, batch: Sequence[ModelInputs], params: PipelineParams, monitor: RunMonitor) -> list[RowOutput]:
        """Make the sound of one text; noise and samples are drawn by its seed, if it has one."""
        [inputs] = batch
        monitor.tick()
        taken = {name: value for name, value in inputs.items() if name != "record_seed"}
        with torch.random.fork_rng(enabled="record_seed" in inputs):
            if "record_seed" in inputs:
                torch.manual_seed(inputs["record_seed"])
            return [self.pipe.forward(taken, **params.forward)]

    def postprocess(self, rows: Sequence[RowOutput], record: PreparedRecord, params: PipelineParams) -> Json:
        """Return the sound as a file."""
        found = super().postprocess(rows, record, params)
        sound = found["audio"][0] if isinstance(found["audio"], list) else found["audio"]
        rate = int(found["sampling_rate"])
        return {"audio": _encode(sound, rate, cast("AudioParams", params).format), "sampling_rate": rate}


class TextToAudioRunner(ProcessorRunner):
    """A `transformers` pipeline from texts to sound."""

    tasks = (TextToAudio,)


def _voice(value: Json) -> list[float]:
    """Return the numbers of a voice.

    Raises:
        RecordError: `wrong_type`.
    """
    kind = TASK_PARAMS[TextToAudio.name]["speaker_embeddings"]
    if not kind.accepts(value):
        raise RecordError("wrong_type", f"speaker_embeddings must be {kind.description}.")
    return [float(number) for number in value]


def _gives_spectrograms(source: ModelSource) -> bool:
    return type(load_config(source)) in AutoModelForTextToSpectrogram._model_mapping


def _load_vocoder(source: ModelSource) -> Any:
    """Return the vocoder beside a model; the pipeline would download one by itself."""
    if not (source.directory / VOCODER).is_dir():
        raise ModelError(
            "missing_weights",
            f"{source.directory} gives spectrograms and has no vocoder to make sound of them: save one in its folder "
            f"{VOCODER}, such as SpeechT5HifiGan.from_pretrained('microsoft/speecht5_hifigan').save_pretrained(...).",
        )
    return load_model(SpeechT5HifiGan, source.inside(source.directory / VOCODER), "cpu")


def _encode(sound: Any, rate: int, format: str) -> bytes:
    """Return a file of 16-bit samples.

    Args:
        sound: numbers from -1 to 1, of shape (samples,) or (channels, samples).
        rate: samples per second.
        format: `wav` or `flac`.
    """
    samples = np.atleast_2d(np.asarray(sound, dtype=np.float32)).T
    file = io.BytesIO()
    soundfile.write(file, np.clip(np.nan_to_num(samples), -1, 1), rate, format=format.upper(), subtype="PCM_16")
    return file.getvalue()
