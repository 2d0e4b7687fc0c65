"""The tasks of sentence-transformers, beside its own `predict`, `encode` and `rank` on the same inputs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Contestant, measure, table
from benchmarks.models import CACHE, minilm
from benchmarks.strategies import Quiet, Strategy
from benchmarks.workloads import texts
from common.records import Json
from workers.inference.tasks.runners import find_runner

OURS = "hugqueue, in the process"
#: Documents of a query.
_DOCUMENTS = 8


@dataclass(frozen=True, slots=True)
class Family:
    """A task of sentence-transformers."""

    task: str
    model: Callable[[], Path]
    count: int  #: of texts
    reference: Callable[[Path, int], Strategy]  #: by the library, in batches of that many
    record: Callable[[str], Json] = str  #: from a text
    chunk: int = 256
    batches: Sequence[int] = (32,)


def compare_family(name: str, count: int | None, rounds: int) -> str:
    """Return the table of one task: our runner and the library in turn over the same records."""
    family = FAMILY[name]
    model = family.model()
    inputs = texts("mixed", count or family.count)
    contestants = {OURS: Contestant(partial(_ours, family, model))}
    for size in family.batches:
        make = partial(family.reference, model, size)
        contestants[f"sentence-transformers, batches of {size}"] = Contestant(make)
    figures = measure(contestants, inputs, rounds)
    notes = {key: _difference(figures[OURS].outputs, one.outputs) for key, one in figures.items() if key != OURS}
    return table(f"{name}: {len(inputs)} records, {rounds} rounds", figures, OURS, notes)


def _ours(family: Family, model: Path) -> Strategy:
    runner = find_runner(family.task).load(family.task, model, "cpu")

    def run(found: Sequence[str]) -> list[Any]:
        records = [family.record(text) for text in found]
        parts = [records[start : start + family.chunk] for start in range(0, len(records), family.chunk)]
        return [_numbers(outcome.output) for part in parts for outcome in runner.run(part, {}, Quiet())]

    return run


def _numbers(output: Any) -> np.ndarray:
    """Return the numbers of an output, in an order that both sides have."""
    if isinstance(output, dict):
        return np.asarray(output["values"])
    if isinstance(output, list) and output and isinstance(output[0], dict):
        return np.array([one["score"] for one in output])
    return np.asarray(output)


def _difference(found: Sequence[Any], expected: Sequence[Any]) -> str:
    if not found or not expected:
        return ""
    pairs = zip(found, expected, strict=True)
    return f"at most {max(float(np.abs(one - np.asarray(other)).max()) for one, other in pairs):.0e} apart"


def _query(text: str) -> Json:
    words = text.split()
    return {"query": " ".join(words[:6]), "documents": [" ".join(words[at:] + words[:at]) for at in range(_DOCUMENTS)]}


def _rank(model: Path, size: int) -> Strategy:
    from sentence_transformers import CrossEncoder

    loaded = CrossEncoder(str(model), device="cpu")

    def run(found: Sequence[str]) -> list[Any]:
        records: list[Any] = [_query(text) for text in found]
        ranked = [loaded.rank(one["query"], one["documents"], batch_size=size) for one in records]
        return [np.array([document["score"] for document in one]) for one in ranked]

    return run


def _encode(kind: str, model: Path, size: int) -> Strategy:
    import sentence_transformers

    loaded = getattr(sentence_transformers, kind)(str(model), device="cpu")

    def run(found: Sequence[str]) -> list[Any]:
        vectors = loaded.encode(list(found), batch_size=size, show_progress_bar=False)
        if kind != "SparseEncoder":
            return [np.asarray(vector) for vector in vectors]
        return [vector.coalesce().values().numpy() for vector in vectors]

    return run


def _saved(name: str, make: Callable[[], Any]) -> Path:
    """Return the directory of a model of sentence-transformers, made on the first call."""
    directory = CACHE / name
    if not (directory / "modules.json").exists():
        import torch

        torch.manual_seed(0)
        make().save(str(directory))
    return directory


def _classifier() -> Any:
    from sentence_transformers import CrossEncoder

    return CrossEncoder(str(minilm()), device="cpu", num_labels=1)


def _splade() -> Any:
    from sentence_transformers import SparseEncoder
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sparse_encoder.modules import SpladePooling

    return SparseEncoder(modules=[Transformer(str(minilm()), transformer_task="fill-mask"), SpladePooling()])


def _colbert() -> Any:
    from sentence_transformers import MultiVectorEncoder

    return MultiVectorEncoder(str(minilm()), device="cpu")


def _table() -> Any:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm())
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=256)], device="cpu")


#: By the name of a table. All have the size of MiniLM-L6, and random heads, which do not affect the speed.
FAMILY: dict[str, Family] = {
    "rerank": Family("rerank", partial(_saved, "reranker", _classifier), 128, _rank, _query, 64, (8, 32)),
    "sparse-embedding": Family(
        "sparse-embedding", partial(_saved, "splade", _splade), 256, partial(_encode, "SparseEncoder"), chunk=128
    ),
    "multi-vector-embedding": Family(
        "multi-vector-embedding",
        partial(_saved, "colbert", _colbert),
        512,
        partial(_encode, "MultiVectorEncoder"),
        chunk=64,
    ),
    "static": Family(
        "embedding",
        partial(_saved, "static", _table),
        16384,
        partial(_encode, "SentenceTransformer"),
        chunk=4096,
        batches=(32, 1024),
    ),
}
