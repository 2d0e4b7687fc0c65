"""A tip for large jobs of vectors: the dtype in which the live workers would compute them faster."""

from collections.abc import Sequence

from common.jobs import JobSpec
from common.queue.heartbeats import Heartbeat
from common.tasks import find_task

#: Below that, what could be saved is not worth a line.
MIN_RECORDS = 1000
#: Tasks whose vectors in bfloat16 are as good as those in float32 for nearly every use (docs/tasks.md has figures).
_TASKS = frozenset({"embedding", "feature-extraction"})
#: How much faster, and how near the vectors stay: all-MiniLM-L6-v2 on an EPYC with AVX512_BF16 (benchmarks/README.md).
_GAINS = {"bfloat16": ("1.5 times as fast", "cosine 0.9998")}


def dtype_tip(spec: JobSpec, records: int, workers: Sequence[Heartbeat]) -> str | None:
    """Return a sentence about a faster dtype for a job, None if there is nothing to say.

    Args:
        spec: the job; one that names a dtype has made its choice.
        records: how many it has.
        workers: the live ones that serve its queue. All must gain: nobody knows which of them run the job.
    """
    names = {worker.faster_dtype for worker in workers}
    if records < MIN_RECORDS or "dtype" in spec.params or find_task(spec.task).name not in _TASKS or len(names) != 1:
        return None
    [name] = names
    if name not in _GAINS:
        return None
    speed, accuracy = _GAINS[name]
    return f"The workers' CPU does {name}: -p dtype={name} is about {speed}, {accuracy}."
