"""Sound from texts, and labels of videos, as the pipelines of transformers give them."""

import io
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
import transformers

from common.errors import ModelError
from common.records import FileInput, Json, Outcome
from tests.support import tiny_media, tiny_models, tiny_multimodal
from tests.support.pipeline_reference import assert_same, runner_of
from tests.support.tiny_models import RecordingMonitor
from workers.inference.generation.seeded_sampling import record_seed

AUDIO, VIDEO = "text-to-audio", "video-classification"
TEXTS = ["the old river", "a dog and a cat", "hm"]


def run(task: str, model: Path, inputs: list[Json], **params: Json) -> list[Outcome]:
    return runner_of(task, model).run(inputs, params, RecordingMonitor())


def sound(outcome: Outcome) -> np.ndarray:
    assert outcome.failure is None
    samples, rate = soundfile.read(io.BytesIO(outcome.output["audio"]), dtype="float32")
    assert rate == outcome.output["sampling_rate"]
    return samples


@pytest.mark.parametrize("params", [{}, {"format": "flac"}, {"speaker_id": 1}])
def test_a_text_sounds_as_in_the_pipeline_with_the_same_noise(tmp_path: Path, params: dict[str, Json]):
    model = tiny_multimodal.vits(tmp_path / "model")
    pipe = transformers.pipeline(AUDIO, model=str(model), device="cpu")
    forward = {name: value for name, value in params.items() if name == "speaker_id"}
    outcomes = run(AUDIO, model, [*TEXTS, TEXTS[0]], seed=3, **params)
    for text, outcome in zip(TEXTS, outcomes, strict=False):
        torch.manual_seed(record_seed(3, {"text": text}))
        expected = pipe(text, forward_params=forward)
        assert np.abs(sound(outcome) - expected["audio"].clip(-1, 1)).max() < 2 / 2**15
        assert outcome.output["sampling_rate"] == expected["sampling_rate"] == 8000
        head = b"fLaC" if params.get("format") == "flac" else b"RIFF"
        assert outcome.output["audio"].startswith(head)
    assert outcomes[3].output == outcomes[0].output
    with pytest.raises(ModelError, match="max_new_tokens is for models that generate"):
        run(AUDIO, model, TEXTS, max_new_tokens=5)


def test_a_spectrogram_becomes_sound_by_the_vocoder_beside_the_model(tmp_path: Path):
    model = tiny_multimodal.speech_t5(tmp_path / "model")
    vocoder = transformers.SpeechT5HifiGan.from_pretrained(model / "vocoder")
    pipe = transformers.pipeline(AUDIO, model=str(model), device="cpu", vocoder=vocoder)
    voice = [0.1, -0.2, 0.3, 0.4]
    records: list[Json] = [{"text": text, "speaker_embeddings": voice} for text in TEXTS]
    wrong: Json = {"text": "a", "speaker_embeddings": "low"}
    *outcomes, refused = run(AUDIO, model, [*records, wrong], seed=1)
    for record, outcome in zip(records, outcomes, strict=True):
        torch.manual_seed(record_seed(1, record))
        expected = pipe(record["text"], forward_params={"speaker_embeddings": torch.tensor([voice])})
        assert np.abs(sound(outcome) - expected["audio"].clip(-1, 1)).max() < 2 / 2**15
    assert refused.failure and refused.failure.code == "wrong_type"
    bare = tiny_multimodal.speech_t5(tmp_path / "bare", vocoder=False)
    with pytest.raises(ModelError, match="has no vocoder"):
        runner_of(AUDIO, bare)


def test_a_model_that_makes_no_sound_fails_the_job_and_a_blank_text_its_record(tmp_path: Path):
    with pytest.raises(ModelError) as caught:
        runner_of(AUDIO, tiny_models.classifier(tmp_path / "classifier"))
    assert caught.value.code == "missing_weights"
    first, second = run(AUDIO, tiny_multimodal.vits(tmp_path / "model"), [" ", "a"])
    assert first.failure and (first.failure.code, second.failure) == ("empty_text", None)


@pytest.mark.parametrize("params", [{}, {"top_k": 1, "frame_sampling_rate": 2}, {"function_to_apply": "sigmoid"}])
def test_a_video_gets_the_labels_that_the_pipeline_gives(tmp_path: Path, params: dict[str, Json]):
    model = tiny_multimodal.videomae(tmp_path / "model")
    pipe = transformers.pipeline(VIDEO, model=str(model), device="cpu")
    blobs = [tiny_multimodal.clip_of(frames, seed) for seed, frames in enumerate((8, 12, 8))]
    outcomes = run(VIDEO, model, [FileInput("a.mp4", blob) for blob in blobs], **params)
    for number, (outcome, blob) in enumerate(zip(outcomes, blobs, strict=True)):
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(blob)
        assert outcome.failure is None
        assert_same(outcome.output, pipe(str(path), **params))


def sound_in_mp4() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(tiny_media.samples(0.2, 1)[None, :1024], format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (b"no video", "does not begin like a video"),
        (tiny_multimodal.clip_of(8)[:400], "cannot be decoded"),
        (tiny_multimodal.clip_of(3), "has 3 frames, and the model looks at 4"),
        (sound_in_mp4(), "no video, only sound"),
    ],
)
def test_a_bad_video_fails_alone(tmp_path: Path, blob: bytes, words: str):
    model = tiny_multimodal.videomae(tmp_path / "model")
    first, second = run(VIDEO, model, [FileInput("a.mp4", blob), FileInput("b.mp4", tiny_multimodal.clip_of(8))])
    assert first.failure and (first.failure.code, second.failure) == ("bad_video", None)
    assert words in first.failure.message


def test_a_video_of_huge_frames_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 1000)
    [outcome] = run(VIDEO, tiny_multimodal.videomae(tmp_path / "model"), [FileInput("a", tiny_multimodal.clip_of(8))])
    assert outcome.failure and "too large" in outcome.failure.message


def test_a_model_without_the_head_or_a_processor_fails_the_job(tmp_path: Path):
    with pytest.raises(ModelError) as caught:
        runner_of(VIDEO, tiny_media.vit(tmp_path / "vit"))
    assert caught.value.code == "missing_weights"
    model = tiny_multimodal.videomae(tmp_path / "model")
    (model / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError) as caught:
        runner_of(VIDEO, model)
    assert caught.value.code == "no_processor"
