"""Runners that score pairs of a query and a document, whatever computes the scores.

The pairs of all records are one set: they are sorted by length and cut into batches together.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import ModelError
from common.params import check_params
from common.records import Failure, Json, Outcome
from common.task_params import TASK_PARAMS
from common.tasks import TASKS
from workers.inference.core.async_copy import PendingResult, copy_to_host_async
from workers.inference.core.batches import Item, run_batches
from workers.inference.core.runner import PreparingRunner, RunMonitor
from workers.inference.core.token_budget import TokenBudget
from workers.inference.embedding.prompts import Prompts
from workers.inference.text.fields import parse_fields
from workers.inference.text.tokenization import check_text, check_texts, parse_inputs

#: A query and one of its documents.
Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class RerankParams:
    """A job's parameters, completed by the model's configuration."""

    prompt: str
    max_length: int | None  #: tokens of a pair at most
    function: str | None  #: from logits to scores; None: the model's own
    top_k: int | None
    all_scores: bool
    documents: bool  #: whether the output repeats the documents


@dataclass(frozen=True, slots=True)
class _Prepared:
    """The tokenized pairs of a chunk."""

    params: RerankParams
    documents: Mapping[int, Sequence[str]]  #: by the position of their record
    items: Sequence[Item[Any]]
    refused: Mapping[int, Outcome]


class PairRunner(PreparingRunner):
    """Scores pairs of a query and a document, whatever computes the logits."""

    budget: TokenBudget
    _prompts: Prompts
    _labels: int  #: logits of a pair
    _activation: nn.Module | None = None  #: the model's own; None: sigmoid for one label, else none

    @abstractmethod
    def _encode(self, pairs: Sequence[Pair], params: RerankParams) -> Sequence[Any]:
        """Return the pairs as `_logits` takes them: each with a length in tokens, and `truncated`."""

    @abstractmethod
    def _logits(self, rows: Sequence[Any], params: RerankParams) -> Tensor:
        """Return the logits of a batch, of shape (pairs, labels)."""

    def prepare(self, inputs: Sequence[Json], params: Mapping[str, Json]) -> _Prepared:
        """Return the pairs of all records, tokenized."""
        parsed = self._parse(params)
        queries, refused = parse_inputs(inputs, _read_query)
        pairs = [
            (position, (query, document)) for position, (query, documents) in queries.items() for document in documents
        ]
        rows = self._encode([pair for _, pair in pairs], parsed)
        items = [Item(position, len(row), row) for (position, _), row in zip(pairs, rows, strict=True)]
        return _Prepared(parsed, {at: documents for at, (_, documents) in queries.items()}, items, refused)

    def run_prepared(self, prepared: _Prepared, monitor: RunMonitor) -> list[Outcome]:
        """Return for each record its documents' numbers and scores, as `common.task_outputs` declares them."""

        def forward(rows: Sequence[Any]) -> Sequence[Any] | PendingResult[Any]:
            with torch.inference_mode():
                scores = self._scores(self._logits(rows, prepared.params).float(), prepared.params)
            return copy_to_host_async([scores], lambda host: host[0].tolist())

        results = run_batches(prepared.items, forward, self.budget, monitor)
        outcomes = dict(prepared.refused)
        found: dict[int, list[tuple[Any, bool]]] = {position: [] for position in prepared.documents}
        for item, result in zip(prepared.items, results, strict=True):
            found[item.position].append((result, item.value.truncated))
        for position, scored in found.items():
            outcomes[position] = _outcome(scored, prepared.documents[position], prepared.params)
        return [outcomes[position] for position in range(len(outcomes))]

    def count_tokens(self, inputs: Sequence[Json], params: Mapping[str, Json]) -> int:
        """Return the number of tokens of all pairs after truncation, including special ones and the prompt."""
        return sum(len(item.value) for item in self.prepare(inputs, params).items)

    def _parse(self, params: Mapping[str, Json]) -> RerankParams:
        checked = check_params("rerank", TASK_PARAMS["rerank"], params)
        every, function = checked.get("return_all_scores", False), checked.get("function_to_apply")
        if every and "top_k" in checked:
            raise _bad_param("return_all_scores keeps the documents' order: top_k cannot be set too.")
        if self._labels != 1 and not every:
            raise _bad_param(
                f"This model gives {self._labels} scores for a pair, which have no order. Set return_all_scores=true, "
                "or use a model with one label."
            )
        if self._labels == 1 and function == "softmax":
            raise _bad_param("function_to_apply=softmax needs several labels; this model has one.")
        return RerankParams(
            prompt=self._prompts.choose(checked),
            max_length=checked.get("max_length"),
            function=function,
            top_k=checked.get("top_k"),
            all_scores=every,
            documents=checked.get("return_documents", False),
        )

    def _scores(self, logits: Tensor, params: RerankParams) -> Tensor:
        """Return the scores of a batch, of shape (pairs, labels)."""
        if params.function is None and self._activation is not None:
            scores: Tensor = self._activation(logits)
            return scores
        function = params.function or ("sigmoid" if self._labels == 1 else "none")
        if function == "none":
            return logits
        return logits.sigmoid() if function == "sigmoid" else logits.softmax(dim=-1)


def _read_query(value: Json) -> tuple[str, Sequence[str]]:
    """Return the query of a record and its documents.

    Raises:
        RecordError: `missing_field`; `wrong_type`, no list of texts, or an empty one; `empty_text`, `bad_text`.
    """
    fields = parse_fields(TASKS["rerank"], value)
    query = check_text(fields["query"], "query")
    if "documents" not in fields:
        return query, [check_text(fields["document"], "document")]
    return query, check_texts(fields["documents"], "documents")


def _outcome(scored: Sequence[tuple[Any, bool]], documents: Sequence[str], params: RerankParams) -> Outcome:
    """Return the outcome of a record from the scores of its documents, or the failure of one of them."""
    failure = next((result for result, _ in scored if isinstance(result, Failure)), None)
    if failure is not None:
        return Outcome(failure=failure)
    output: list[dict[str, Json]] = [
        {"index": number, "scores": scores} if params.all_scores else {"index": number, "score": scores[0]}
        for number, (scores, _) in enumerate(scored)
    ]
    if not params.all_scores:
        output = sorted(output, key=lambda one: one["score"], reverse=True)[: params.top_k]
    if params.documents:
        output = [{**one, "document": documents[one["index"]]} for one in output]
    return Outcome(output, truncated=any(truncated for _, truncated in scored))


def _bad_param(message: str) -> ModelError:
    return ModelError("bad_param", message)
