"""Sentence similarity: how similar sentences are to a source sentence, by their vectors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.params import check_params
from common.records import Failure, Json, Outcome
from common.task_params import SIMILARITIES, TASK_PARAMS
from common.tasks import TASKS
from workers.inference.core.runner import PreparingRunner, RemappedMonitor, RunMonitor
from workers.inference.embedding.pooling import normalize
from workers.inference.embedding.sentence_transformers_config import GENERAL
from workers.inference.loading.loader import ModelSource
from workers.inference.tasks.embedding import EmbeddingRunner
from workers.inference.text.fields import parse_fields
from workers.inference.text.tokenization import check_text, check_texts, parse_inputs
from workers.models.file_references import read_json
from workers.models.load_options import DEFAULT_OPTIONS, LoadOptions


@dataclass(frozen=True, slots=True)
class _Prepared:
    """The texts of a chunk, each once, tokenized."""

    similarity: str
    texts: Mapping[str, int]  #: the number of each text
    records: Mapping[int, Sequence[str]]  #: by position: the source sentence, then the others
    users: Sequence[Sequence[int]]  #: by the number of a text: the positions of the records that have it
    vectors: Any  #: what the embedding runner prepared
    refused: Mapping[int, Outcome]


class SentenceSimilarityRunner(PreparingRunner):
    """Compares sentences by the vectors of an embedding runner; a text that occurs several times runs once.

    Parameters: `similarity`, the model's own by default, and those of the vectors.
    """

    def __init__(self, task: str, model: Path | None, device: str, options: LoadOptions = DEFAULT_OPTIONS) -> None:
        """Load the model.

        Raises:
            CodedError: as the runner of embeddings.
        """
        source = ModelSource.of(task, model, options)
        self._embedding = EmbeddingRunner.load("embedding", model, device, options)
        self.budget = self._embedding.budget
        own = read_json(source.directory / GENERAL).get("similarity_fn_name")
        self._similarity = str(own) if own in SIMILARITIES else "cosine"

    def is_deterministic(self, params: Mapping[str, Json]) -> bool:
        """Return whether the vectors are."""
        return self._embedding.is_deterministic(_of_vectors(params))

    def memory_bytes(self) -> int:
        """Return about how much memory the model holds, in bytes."""
        return self._embedding.memory_bytes()

    def run_info(self) -> dict[str, Json]:
        """Return how the model runs."""
        return self._embedding.run_info()

    def prepare(self, inputs: Sequence[Json], params: Mapping[str, Json]) -> _Prepared:
        """Return the tokenized texts of all records."""
        checked = check_params("sentence-similarity", TASK_PARAMS["sentence-similarity"], params)
        records, refused = parse_inputs(inputs, _read_sentences)
        users: dict[str, list[int]] = {}
        for position, sentences in records.items():
            for sentence in dict.fromkeys(sentences):
                users.setdefault(sentence, []).append(position)
        texts = list(users)
        return _Prepared(
            similarity=checked.get("similarity", self._similarity),
            texts={text: number for number, text in enumerate(texts)},
            records=records,
            users=list(users.values()),
            vectors=self._embedding.prepare(texts, _of_vectors(params)),
            refused=refused,
        )

    def run_prepared(self, prepared: _Prepared, monitor: RunMonitor) -> list[Outcome]:
        """Return for each record a list of scores, one for each of its sentences."""
        found = self._embedding.run_prepared(prepared.vectors, RemappedMonitor(monitor, prepared.users))
        outcomes = dict(prepared.refused)
        for position, sentences in prepared.records.items():
            vectors = [found[prepared.texts[sentence]] for sentence in sentences]
            outcomes[position] = _compared(vectors, prepared.similarity)
        return [outcomes[position] for position in range(len(outcomes))]


def _of_vectors(params: Mapping[str, Json]) -> dict[str, Json]:
    return {name: value for name, value in params.items() if name != "similarity"}


def _read_sentences(value: Json) -> list[str]:
    """Return the source sentence of a record, then the others.

    Raises:
        RecordError: `missing_field`, `wrong_type`, `empty_text`, `bad_text`.
    """
    fields = parse_fields(TASKS["sentence-similarity"], value)
    source = check_text(fields["source_sentence"], "source_sentence")
    return [source, *check_texts(fields["sentences"], "sentences")]


def _compared(vectors: Sequence[Outcome], similarity: str) -> Outcome:
    """Return the outcome of a record from those of its sentences' vectors, the source sentence first."""
    failure: Failure | None = next((one.failure for one in vectors if one.failure), None)
    if failure is not None:
        return Outcome(failure=failure)
    source, *others = torch.from_numpy(np.stack([one.output for one in vectors])).unbind()
    scores = _SIMILARITIES[similarity](torch.stack(others), source)
    return Outcome(scores.tolist(), truncated=any(one.truncated for one in vectors))


def _cosine(vectors: Tensor, source: Tensor) -> Tensor:
    return normalize(vectors) @ normalize(source)


def _euclidean(vectors: Tensor, source: Tensor) -> Tensor:
    return -torch.cdist(vectors, source[None])[:, 0]


#: Vectors of shape (sentences, width) and a vector of shape (width,) to scores of shape (sentences,), larger for more
#: similar ones.
_SIMILARITIES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": _cosine,
    "dot": lambda vectors, source: vectors @ source,
    "euclidean": _euclidean,
    "manhattan": lambda vectors, source: -torch.cdist(vectors, source[None], p=1)[:, 0],
}
