"""What people write first: a Celery task per record, the model loaded in the worker, results in the backend."""

import os
from typing import Any

from celery import Celery

app = Celery("naive", broker=os.environ.get("NAIVE_URL"), backend=os.environ.get("NAIVE_URL"))
app.conf.update(worker_prefetch_multiplier=4, worker_pool="solo")
_pipe: Any = None


@app.task  # type: ignore[untyped-decorator]
def predict(task: str, model: str, text: str, params: dict[str, Any]) -> Any:
    """Return what `pipeline` gives for one text."""
    global _pipe  # noqa: PLW0603 - this is how it is written
    if _pipe is None:
        from transformers import pipeline

        _pipe = pipeline(task, model=model, device="cpu")
    output = _pipe(text, **params)
    if task == "feature-extraction":  # the mean of its tokens, as an embedding
        rows = output[0]
        return [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    return output
