"""Naive baseline: a Celery task per record, with the model loaded in the worker and results in the backend."""

import os
from pathlib import Path
from typing import Any

from celery import Celery

from benchmarks.strategies import Strategy, Work, pipeline

app = Celery("naive", broker=os.environ.get("NAIVE_URL"), backend=os.environ.get("NAIVE_URL"))
app.conf.update(worker_prefetch_multiplier=4, worker_pool="solo")
_run: Strategy | None = None


@app.task  # type: ignore[untyped-decorator]
def predict(task: str, model: str, text: str, params: dict[str, Any], device: str) -> Any:
    """Return the output of `pipeline` for one text, truncated as in all strategies."""
    global _run  # noqa: PLW0603 - as naive code does
    if _run is None:
        _run = pipeline(Work(task, Path(model), params, device), 1)
    output = _run([text])[0]
    return output.tolist() if task == "embedding" else output
