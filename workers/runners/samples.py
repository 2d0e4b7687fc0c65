"""A few records for each task: what a freshly loaded model is warmed up and tried with."""

import io
from collections.abc import Sequence

from common.tasks import find_task
from common.values import Attached, Json

_TEXTS = (
    "A short text.",
    "Water boils at a hundred degrees, unless it is heated high up on a mountain.",
    "The old library stands beside the river. It opens at nine, closes at six, and keeps two thousand maps.",
)
_SAMPLES: dict[str, tuple[Json, ...]] = {
    "fill-mask": tuple(f"{text} It is [MASK]." for text in _TEXTS),
    "zero-shot-classification": tuple({"text": text, "candidate_labels": ["science", "travel"]} for text in _TEXTS),
    "question-answering": tuple({"question": "When does it open?", "context": text} for text in _TEXTS),
    "table-question-answering": (
        {"table": {"name": ["map", "book"], "number": ["2000", "7"]}, "query": "How many maps are there?"},
    ),
}


def _gradient(side: int) -> bytes:
    """Return a grey image as PNG."""
    from PIL import Image

    file = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).save(file, "PNG")
    return file.getvalue()


def samples(task: str) -> Sequence[Json]:
    """Return inputs that a runner of `task` can take."""
    if find_task(task).media == "image":
        return tuple(Attached("a sample", _gradient(side)) for side in (64, 224))
    return _SAMPLES.get(find_task(task).name, _TEXTS)
