"""Ray Data script: encodes the texts of a file with sentence-transformers. Arguments: MODEL SOURCE TARGET BATCH.

It follows Ray's documentation of batch inference: one actor holds the model, and `map_batches` runs over the blocks.
It runs in its own environment and does not import hugqueue.
"""

import os
import sys
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext

_CORES = os.cpu_count() or 1


class Encode:
    """The actor that holds the model."""

    def __init__(self, model: str, batch: int) -> None:
        """Load the model."""
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(_CORES)  # Ray's default is one thread per actor
        self._model = SentenceTransformer(model, device="cpu")
        self._batch = batch

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """Return the vectors of a batch."""
        return {"output": self._model.encode(list(rows["text"]), batch_size=self._batch, show_progress_bar=False)}


def main() -> None:
    """Encode all texts, keeping their order."""
    model, source, target, batch = sys.argv[1:]
    ray.init(num_cpus=2 * _CORES, include_dashboard=False, log_to_driver=False)
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    ray.data.read_text(source).map_batches(
        Encode,
        fn_constructor_args=(model, int(batch)),
        batch_size=1024,
        compute=ActorPoolStrategy(size=1),
        num_cpus=_CORES,
    ).write_parquet(target)


if __name__ == "__main__":
    main()
