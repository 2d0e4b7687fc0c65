"""Sample records for each task, for the warm-up and the tests of a freshly loaded model."""

import io
import math
import wave
from collections.abc import Sequence

from common.records import FileInput, Json, pack_files
from common.tasks import find_task

_TEXTS = (
    "A short text.",
    "Water boils at a hundred degrees, unless it is heated high up on a mountain.",
    "The old library stands beside the river. It opens at nine, closes at six, and keeps two thousand maps.",
)
_RATE = 16_000  # samples a second
#: Fields of samples that go with a file.
_WITH_MEDIA: dict[str, Json] = {
    "candidate_labels": ["light", "dark"],
    "question": "Is it light?",
    "text": "Describe it.",
    "word_boxes": [["light", [0, 0, 500, 1000]], ["dark", [500, 0, 1000, 1000]]],
}
_SAMPLES: dict[str, tuple[Json, ...]] = {
    "fill-mask": tuple(f"{text} It is [MASK]." for text in _TEXTS),
    "zero-shot-classification": tuple({"text": text, "candidate_labels": ["science", "travel"]} for text in _TEXTS),
    "question-answering": tuple({"question": "When does it open?", "context": text} for text in _TEXTS),
    "decision": tuple(
        {"state": text, "questions": {"place": {"type": "noul", "instructions": "Is it about a place?"}}}
        for text in _TEXTS
    ),
    "rerank": tuple({"query": "When does it open?", "documents": [text]} for text in _TEXTS),
    "sentence-similarity": tuple({"source_sentence": "It opens at nine.", "sentences": [text]} for text in _TEXTS),
    "table-question-answering": (
        {"table": {"name": ["map"], "number": ["2000"]}, "query": "How many maps?"},
        {"table": {"name": ["map", "book"], "number": ["2000", "7"]}, "query": "How many maps are there?"},
    ),
}


def _gradient(side: int) -> bytes:
    """Return a gray image as PNG."""
    from PIL import Image

    file = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).save(file, "PNG")
    return file.getvalue()


def _tone(seconds: int) -> bytes:
    """Return a falling tone as WAV."""
    file = io.BytesIO()
    with wave.open(file, "wb") as tone:
        tone.setnchannels(1)
        tone.setsampwidth(2)
        tone.setframerate(_RATE)
        waves = (int(9000 * math.sin(900 * math.sqrt(at / _RATE))) for at in range(seconds * _RATE))
        tone.writeframes(b"".join(value.to_bytes(2, "little", signed=True) for value in waves))
    return file.getvalue()


def _clip() -> bytes:
    """Return a video of 32 frames that grow lighter, as MP4."""
    import av
    import numpy as np

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=16)
        stream.width, stream.height = 224, 224
        for number in range(32):
            frame = av.VideoFrame.from_ndarray(np.full((224, 224, 3), number * 8, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def _blobs(kind: str) -> list[bytes]:
    """Return files of a kind, in two sizes where that matters."""
    if kind == "video":
        return [_clip()]
    return [_gradient(side) for side in (64, 224)] if kind == "image" else [_tone(1), _tone(3)]


def samples(task: str, mask: str | None = None) -> Sequence[Json]:
    """Return sample inputs of a task.

    Args:
        task: its name, or an alias.
        mask: the model's own mask token; None keeps `[MASK]`.
    """
    known = find_task(task)
    if known.reads_files:
        kind = known.media[0]
        blobs = _blobs(kind)
        with_it = {name: value for name, value in _WITH_MEDIA.items() if name in known.optional}
        if known.second_file:
            both = {kind: "a sample", known.second_file: "a sample"}
            return (FileInput(both, pack_files(blobs)),)
        return tuple(FileInput({kind: "a sample", **with_it}, blob) for blob in blobs)
    found = _SAMPLES.get(known.name, _TEXTS)
    return tuple(text.replace("[MASK]", mask) for text in found) if mask and known.name == "fill-mask" else found
