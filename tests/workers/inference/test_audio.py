"""Sound through the runner gives what `transformers.pipeline` gives for its samples one by one."""

import io
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import transformers
from scipy.signal import resample_poly

from common.errors import ModelError, RecordError
from common.records import FileInput, Json, Outcome
from tests.support import tiny_media
from tests.support.pipeline_reference import assert_same, runner_of
from tests.support.tiny_models import RecordingMonitor
from workers.inference.tasks.audio import AudioRunner, decode_audio

SOUNDS = [tiny_media.samples(seconds, seed) for seed, seconds in enumerate((0.5, 0.3, 0.5, 1.0))]


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_media.heard(tmp_path_factory.mktemp("heard"))


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_media.spoken(tmp_path_factory.mktemp("spoken"))


def attached(sounds: Sequence[np.ndarray]) -> list[Json]:
    return [FileInput("x.wav", tiny_media.sound_bytes(sound)) for sound in sounds]


def run(task: str, model: Path, inputs: Sequence[Json], **params: Json) -> list[Outcome]:
    return runner_of(task, model).run(inputs, params, RecordingMonitor())


@pytest.mark.parametrize("params", [{}, {"top_k": 2}, {"function_to_apply": "sigmoid"}])
def test_audio_gets_the_labels_that_the_pipeline_gives(heard: Path, params: dict[str, Json]):
    pipe = transformers.pipeline("audio-classification", model=str(heard), device="cpu")
    for outcome, sound in zip(run("audio-classification", heard, attached(SOUNDS), **params), SOUNDS, strict=True):
        assert outcome.failure is None
        assert_same(outcome.output, pipe(sound.copy(), **params))


@pytest.mark.parametrize(
    "params",
    [{}, {"return_timestamps": "word"}, {"chunk_length_s": 0.4}, {"chunk_length_s": 0.4, "stride_length_s": 0.1}],
)
def test_speech_becomes_the_text_that_the_pipeline_gives(spoken: Path, params: dict[str, Json]):
    task = "automatic-speech-recognition"
    pipe = transformers.pipeline(task, model=str(spoken), device="cpu")
    for outcome, sound in zip(run(task, spoken, attached(SOUNDS), **params), SOUNDS, strict=True):
        assert outcome.failure is None
        assert outcome.output["text"]
        assert_same(outcome.output, pipe(sound.copy(), **params))


@pytest.mark.parametrize("task", ["audio-classification", "automatic-speech-recognition"])
def test_audio_shorter_than_a_frame_fails_alone(heard: Path, spoken: Path, task: str):
    model = heard if task == "audio-classification" else spoken
    short = [np.ones(5, np.float32), tiny_media.samples(0.001, 1)]
    outcomes = run(task, model, attached([SOUNDS[0], *short, SOUNDS[1]]))
    assert [outcome.failure and outcome.failure.code for outcome in outcomes] == [None, "bad_audio", "bad_audio", None]


def test_whisper_takes_audio_shorter_than_a_frame(tmp_path: Path):
    model = tiny_media.whisper(tmp_path / "model")
    [outcome] = run("automatic-speech-recognition", model, attached([tiny_media.samples(0.01, 1)]))
    assert outcome.failure is None


def test_audio_of_another_rate_and_two_channels_is_brought_to_the_models(heard: Path):
    sound = tiny_media.samples(0.5, 9, 44_100)
    both = np.stack([sound, sound * 0.5], axis=1)
    blob = tiny_media.sound_bytes(both, 44_100)
    [outcome] = run("audio-classification", heard, [FileInput("x.wav", blob)])
    pipe = transformers.pipeline("audio-classification", model=str(heard), device="cpu")
    assert_same(outcome.output, pipe(resample_poly(both.mean(axis=1), 160, 441).astype(np.float32)))


@pytest.mark.parametrize("format", ["FLAC", "OGG", "MP3", "AIFF"])
def test_other_formats_are_decoded(heard: Path, format: str):
    [outcome] = run("audio-classification", heard, [FileInput("x", tiny_media.sound_bytes(SOUNDS[3], format=format))])
    assert outcome.failure is None


@pytest.mark.parametrize(
    "blob", [b"", b"no sound", b"RIFF\0\0\0\0WAVE", b"fLaC" + bytes(50), tiny_media.sound_bytes(SOUNDS[0][:0])]
)
def test_a_broken_audio_fails_alone(heard: Path, blob: bytes):
    first, second = run("audio-classification", heard, [*attached(SOUNDS[:1]), FileInput("x.wav", blob)])
    assert first.failure is None
    assert second.failure and second.failure.code == "bad_audio"


def test_audio_that_would_fill_the_memory_fails_alone(heard: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("workers.inference.tasks.audio.MAX_SAMPLES", 8_000)
    found = run("audio-classification", heard, attached(SOUNDS))
    assert [outcome.failure and outcome.failure.code for outcome in found] == [None, None, None, "bad_audio"]


@pytest.mark.parametrize("rate", [1, 99, 1_000_001, 2**31 - 1])
def test_audio_of_a_rate_that_nothing_records_fails(rate: int):
    with pytest.raises(RecordError, match="sample rate") as caught:
        decode_audio(silence(1500, rate), 16_000)
    assert caught.value.code == "bad_audio"


def test_audio_is_bounded_after_its_rate_is_changed_as_well(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("workers.inference.tasks.audio.MAX_SAMPLES", 100_000)
    with pytest.raises(RecordError, match="too long"):
        decode_audio(silence(1500, 100), 16_000)


@pytest.mark.parametrize("rate", [999_983, 44_101])
def test_audio_of_an_odd_rate_needs_no_huge_filter(rate: int):
    tracemalloc.start()
    assert len(decode_audio(silence(1500, rate), 16_000)) == -(-1500 * 16_000 // rate)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000_000


def silence(samples: int, rate: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(samples, "int16"), rate, format="WAV")
    return file.getvalue()


def test_a_generation_parameter_is_refused_by_a_model_that_does_not(spoken: Path):
    with pytest.raises(ModelError, match="language is for models that generate"):
        run("automatic-speech-recognition", spoken, attached(SOUNDS[:1]), language="en")


@pytest.mark.parametrize("params", [{}, {"language": "en", "task": "translate"}, {"return_timestamps": True}])
def test_whisper_writes_what_it_writes_in_the_pipeline(tmp_path: Path, params: dict[str, Json]):
    model = tiny_media.whisper(tmp_path / "model")
    sounds = [*SOUNDS, tiny_media.samples(3.0, 7)]  # the last is longer than the two seconds that it sees at once
    if not params.get("return_timestamps"):
        sounds.pop()  # the pipeline asks for timestamps there
    task = "automatic-speech-recognition"
    pipe = transformers.pipeline(task, model=str(model), device="cpu")
    named = {name: params[name] for name in ("language", "task") if name in params}
    others = {name: value for name, value in params.items() if name not in named}
    outcomes = runner_of(task, model).run(attached(sounds), params, RecordingMonitor())
    for outcome, sound in zip(outcomes, sounds, strict=True):
        assert outcome.failure is None
        assert_same(outcome.output, pipe(sound.copy(), **others, generate_kwargs=named))


def test_a_language_that_whisper_does_not_know_is_refused(tmp_path: Path):
    runner = runner_of("automatic-speech-recognition", tiny_media.whisper(tmp_path / "model"))
    assert isinstance(runner, AudioRunner)
    for language in ("en", "English", "<|en|>"):
        [outcome] = runner.run(attached(SOUNDS[:1]), {"language": language}, RecordingMonitor())
        assert outcome.failure is None
    for language in ("de", "German", "xx"):
        with pytest.raises(ModelError, match=f"language is '{language}'; this model knows en") as caught:
            runner.run(attached(SOUNDS[:1]), {"language": language}, RecordingMonitor())
        assert caught.value.code == "bad_param"
    runner.task.pipe.model.generation_config.is_multilingual = False
    for params in ({"language": "en"}, {"task": "transcribe"}):
        with pytest.raises(ModelError, match="multilingual models of Whisper"):
            runner.run(attached(SOUNDS[:1]), params, RecordingMonitor())


LABELS = {"candidate_labels": ["the old cat", "a river"]}


@pytest.mark.parametrize("params", [LABELS, LABELS | {"hypothesis_template": "the sound of {}"}])
def test_custom_labels_get_the_scores_that_the_pipeline_gives(tmp_path: Path, params: dict[str, Json]):
    task, model = "zero-shot-audio-classification", tiny_media.clap(tmp_path / "model")
    pipe = transformers.pipeline(task, model=str(model), device="cpu")
    for outcome, sound in zip(run(task, model, attached(SOUNDS), **params), SOUNDS, strict=True):
        assert outcome.failure is None
        assert_same(outcome.output, pipe(sound.copy(), **params))
