"""Strategies that are compared: each takes texts and returns outputs, with its model loaded beforehand."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.jobs import JobSpec
from common.payloads.arrays import values_of
from common.payloads.codec import decode_outcomes, iter_outcomes
from common.records import Json, Record
from common.tasks import find_task
from workers.device.server.encode_chunk import OutputEncoding, encode_chunk
from workers.device.server.memory import retain_freed_memory
from workers.device.server.run_chunk import run_chunk
from workers.inference.tasks.pipeline_runner import PipelineRunner
from workers.inference.tasks.runners import find_runner
from workers.models.load_options import LoadOptions

#: Bytes of freed memory that glibc keeps by default (twice the largest block that it does not map separately).
_USUALLY_KEPT = 64 << 20

Strategy = Callable[[Sequence[str]], list[Any]]

#: Largest number of tokens of a text: MiniLM's own limit is 256; the default here is BERT's 512.
LIMIT = {"embedding": 256}


@dataclass(frozen=True, slots=True)
class Work:
    """A task and a model to measure."""

    task: str
    model: Path
    params: dict[str, Json] = field(default_factory=dict)
    device: str = "cpu"

    @property
    def dtype(self) -> str:
        """The dtype of all strategies: that of the parameters, or hugqueue's default."""
        return str(self.params.get("dtype") or ("bfloat16" if self.on_gpu else "float32"))

    @property
    def on_gpu(self) -> bool:
        """Whether the work runs on a GPU, whose results must be awaited."""
        return self.device != "cpu"

    @property
    def pipeline_task(self) -> str:
        """The task's name in transformers: an embedding is computed from hidden states."""
        return "feature-extraction" if self.task == "embedding" else self.task


class Quiet:
    """A monitor that ignores everything."""

    def batch(self, positions: Sequence[int]) -> None:
        """Do nothing."""

    def tick(self) -> None:
        """Do nothing."""


def runner(
    work: Work, *, chunk: int | None = None, forward_batch: bool = True, keeps: bool = True, **params: Json
) -> Strategy:
    """The work of the device process: the runner in this process, chunk by chunk, with encoded outcomes.

    Args:
        work: what to do.
        chunk: records per chunk; None for the producer's default.
        forward_batch: tokenize and run whole batches; if not, use the pipeline's own steps, in batches.
        keeps: keep the memory of a batch for the next one, as the device process does.
        params: of the job, such as `dtype`.
    """
    loaded = find_runner(work.task).load(
        work.task, work.model, work.device, LoadOptions().with_params(work.task, params)
    )
    if not forward_batch and isinstance(loaded, PipelineRunner):
        loaded.encoder = None
    size = chunk or find_task(work.task).chunk_records
    outputs = OutputEncoding.of(loaded, JobSpec("0" * 12, work.task, params=work.params), work.params)

    @keeping(keeps)
    def run(texts: Sequence[str]) -> list[Any]:
        payloads = []
        for start in range(0, len(texts), size):
            records = {at: Record(at, text) for at, text in enumerate(texts[start : start + size])}
            outcomes = run_chunk(loaded, records, work.params, work.device, Quiet())
            payloads.append(encode_chunk(records, outcomes, outputs)[0])
        return [row.output for payload in payloads for _, _, row in iter_outcomes(decode_outcomes(payload))]

    return run


@contextmanager
def keeping(keeps: bool) -> Iterator[None]:
    """Within the block, keep freed memory as the device process does, or else use glibc's default."""
    if keeps:
        retain_freed_memory()
    try:
        yield
    finally:
        retain_freed_memory(_USUALLY_KEPT)


def pipeline(work: Work, batch: int) -> Strategy:
    """`transformers.pipeline` on a list, as its documentation shows; an embedding is the mean of hidden states."""
    from transformers import pipeline as make

    more: dict[str, Any] = {"return_tensors": True} if work.task == "embedding" else dict(work.params)
    pipe = make(work.pipeline_task, model=str(work.model), device=work.device, dtype=work.dtype)
    pipe.tokenizer.model_max_length = LIMIT.get(work.task, 512)
    if work.task == "embedding":
        more["tokenize_kwargs"] = {"truncation": True}
    elif work.task == "text-classification":
        more["truncation"] = True
    if pipe.tokenizer.pad_token_id is None:
        pipe.tokenizer.pad_token = pipe.tokenizer.eos_token

    def run(texts: Sequence[str]) -> list[Any]:
        found = pipe(list(texts), batch_size=batch, **more)
        return [_mean(states, text, pipe) for states, text in zip(found, texts, strict=True)] if _is(work) else found

    return run


def sentence_transformers(work: Work, batch: int) -> Strategy:
    """`SentenceTransformer.encode` on a list."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(work.model), device=work.device, model_kwargs={"dtype": work.dtype})
    return lambda texts: list(model.encode(list(texts), batch_size=batch, show_progress_bar=False))


def whole_job(work: Work, directory: Path, environ: dict[str, str]) -> Strategy:
    """A job from file to file, through Redis, Celery and a running worker with its model loaded."""
    source, target = directory / "in.txt", directory / "out.parquet"

    def run(texts: Sequence[str]) -> list[Any]:
        source.write_text("".join(f"{text}\n" for text in texts))
        command = [sys.executable, "-P", "-m", "producer.cli", "submit", "--task", work.task, str(source)]
        command += ["-m", str(work.model), "-o", str(target)]
        for key, value in work.params.items():
            command += ["-p", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
        done = subprocess.run(command, env=environ, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"producer submit ended with {done.returncode}: {done.stderr[-500:]}")
        import pyarrow.parquet as pq

        return values_of(pq.read_table(target).column("output"))

    return run


def _is(work: Work) -> bool:
    return work.task == "embedding"


def _mean(states: Any, text: str, pipe: Any) -> Any:
    """Return the mean over a text's tokens; in a batch, the pipeline's output includes padding."""
    tokens = len(pipe.tokenizer(text, truncation=True)["input_ids"])
    return states[0][:tokens].float().mean(dim=0).numpy()
