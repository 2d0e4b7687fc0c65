"""Runners that give one vector for each record, or for each piece of a text, whatever computes the vectors."""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from common.embedding_params import PACKED, WITH_RANGES, check_embedding_params, check_packs
from common.errors import ModelError, RecordError
from common.params import check_params
from common.records import Failure, FileInput, Json, Outcome
from common.task_outputs import embedding_form
from common.task_params import TASK_PARAMS
from common.tasks import TASKS
from common.vector_ranges import decode_ranges
from workers.inference.core.async_copy import PendingResult
from workers.inference.core.batches import Item, run_batches
from workers.inference.core.runner import PreparingRunner, RunMonitor
from workers.inference.core.token_budget import TokenBudget
from workers.inference.embedding.pieces import Piece, Split, cut_pieces
from workers.inference.embedding.prompts import Prompts, check_task
from workers.inference.text.fields import parse_fields
from workers.inference.text.tokenization import NO_TOKENS, TokenizedText, check_text, parse_inputs

_TASK = TASKS["embedding"]
_NOT_FINITE = Failure("not_finite", "The model's vector holds NaN or infinity, for which the precision has no number.")


class TextRow(Protocol):
    """A text that is ready for the model."""

    @property
    def truncated(self) -> bool:
        """Whether the model does not see all of it."""

    def __len__(self) -> int:
        """Return its number of tokens."""


class MediaRow(TextRow, Protocol):
    """A record with an image or a recording that is ready for the model."""

    @property
    def group(self) -> Hashable:
        """What all records of a batch have in common."""


@dataclass(frozen=True, slots=True)
class VectorParams:
    """A job's parameters, completed by the model's configuration."""

    pooling: tuple[str, ...]  #: empty: as the model is configured
    prompt: str
    task: str | None  #: `query`, `document`, or another route of the model
    normalize: bool | None  #: None: as the model is configured
    dimension: int  #: of the vectors, after truncation
    split: Split | None  #: how texts are cut into pieces; None: not at all
    finite: bool  #: whether the job's precision has no numbers for NaN and infinity


@dataclass(frozen=True, slots=True)
class PreparedVectors:
    """A tokenized chunk."""

    params: VectorParams
    items: Sequence[Item[Any]]
    pieces: Sequence[Piece]  #: the place of each item
    failed: Mapping[int, Outcome]  #: inputs that are not texts, by position


class VectorRunner(PreparingRunner):
    """Turns texts into float32 vectors.

    Parameters: `normalize`, `prompt` or `prompt_name`, `task`, `truncate_dim` (keeps the first numbers of a vector,
    before `normalize=true` scales it, like sentence-transformers), `split_tokens` and `split_overlap`
    (`workers.inference.embedding.pieces`), and `pooling` where a runner pools itself. `precision` and `ranges` are
    checked.
    """

    budget: TokenBudget
    _task: str
    _prompts: Prompts
    _truncate_dim: int | None = None  #: the model's own
    _limit: int | None = None  #: tokens of a text at most
    _routes: tuple[str, ...] = ()

    @abstractmethod
    def _encode(self, texts: Sequence[str], prompt: str) -> Sequence[TextRow]:
        """Return the texts, each with the prompt before it, as `_vectors` takes them; any thread may call this."""

    @abstractmethod
    def _vectors(self, rows: Sequence[Any], params: VectorParams) -> Sequence[Any] | PendingResult[Any]:
        """Return the vectors of a batch, each a float32 array of shape (dimension,)."""

    @abstractmethod
    def _dimension(self, pooling: tuple[str, ...]) -> int:
        """Return the length of a vector before truncation."""

    @abstractmethod
    def _words(self, texts: Sequence[str]) -> Sequence[TokenizedText]:
        """Return whole texts without special tokens, by a tokenizer that knows the place of each token.

        Raises:
            ModelError: `bad_param`, the model has no such tokenizer.
        """

    def _prepare_media(self, fields: Mapping[str, Json], blob: bytes | None, params: VectorParams) -> MediaRow:
        """Return a record with an image or a recording, as `_vectors` takes it; any thread may call this.

        Args:
            fields: of the record; `text` too if it goes with the file.
            blob: the file, untrusted; None if the worker has to open it.
            params: of the job.

        Raises:
            RecordError: `wrong_type`, the model takes no such record; the file cannot be read.
        """
        raise media_refused(fields, "text")

    def _normalizes(self, params: Mapping[str, Json]) -> bool | None:
        """Return whether vectors are scaled to length 1 under these parameters; None: as the model is configured."""
        found: bool | None = params.get("normalize")
        return found

    def _pooling(self, params: Mapping[str, Json]) -> tuple[str, ...]:
        """Return the pooling modes; the model's modules decide unless a runner pools by itself."""
        if "pooling" in params:
            raise _bad_param("pooling is not for this model: its own modules turn the tokens into a vector.")
        return ()

    def output_type(self, params: Mapping[str, Json]) -> pa.DataType:
        """Return the type of a vector of float32, or of a list of pieces with one each."""
        return embedding_form({**params, "precision": "float32"}).arrow_type(length=self._parse(params).dimension)

    def prepare(self, inputs: Sequence[Json], params: Mapping[str, Json]) -> PreparedVectors:
        """Return the tokenized texts, or pieces of texts."""
        parsed = self._parse(params)
        values, failed = parse_inputs(inputs, partial(self._read, params=parsed))
        texts = {position: value for position, value in values.items() if isinstance(value, str)}
        pieces = self._pieces(texts, parsed.split)
        encoded = self._encode([texts[one.position][one.start : one.end] for one in pieces], parsed.prompt)
        found = [(one, row) for one, row in zip(pieces, encoded, strict=True) if len(row)]
        items = [Item(one.position, len(row), row) for one, row in found]
        media = {position: row for position, row in values.items() if not isinstance(row, str)}
        items += [Item(position, len(row), row, row.group) for position, row in media.items()]
        failed |= dict.fromkeys(texts.keys() - {item.position for item in items}, Outcome(failure=NO_TOKENS))
        return PreparedVectors(parsed, items, [one for one, _ in found], failed)

    def run_prepared(self, prepared: PreparedVectors, monitor: RunMonitor) -> list[Outcome]:
        """Return a float32 array of shape (dimension,) for each text or, for its pieces, a list of objects."""

        def forward(rows: Sequence[Any]) -> Sequence[Any] | PendingResult[Any]:
            return self._vectors(rows, prepared.params)

        results = run_batches(prepared.items, forward, self.budget, monitor)
        outcomes = {**prepared.failed, **_outcomes(prepared, results)}
        return [outcomes[position] for position in range(len(outcomes))]

    def token_counts(self, texts: Sequence[str], params: Mapping[str, Json]) -> list[int]:
        """Return the number of tokens of each text after truncation, including special ones and the prompt."""
        return [len(row) for row in self._encode(texts, self._parse(params).prompt)]

    def _read(self, value: Json, params: VectorParams) -> str | MediaRow:
        """Return the text of a record, or what is ready for the model.

        Raises:
            RecordError: as `check_text`, `parse_fields` and `_prepare_media`.
        """
        if isinstance(value, str):
            return check_text(value)
        blob = value.blob if isinstance(value, FileInput) else None
        fields = parse_fields(_TASK, value.input if isinstance(value, FileInput) else value)
        if not _TASK.file_fields(fields):
            return check_text(fields["text"])
        if params.split is not None:
            raise RecordError("wrong_type", f"split_tokens cuts texts; the record has {' and '.join(fields)}.")
        if fields.get("text") == "":  # an empty cell beside the one that names the file
            del fields["text"]
        return self._prepare_media(fields, blob, params)

    def _pieces(self, texts: Mapping[int, str], split: Split | None) -> list[Piece]:
        """Return the pieces of all texts; a text that is not split is one piece."""
        if split is None:
            return [Piece(position, 0, len(text)) for position, text in texts.items()]
        whole = self._words(list(texts.values()))
        return [
            piece
            for (position, text), row in zip(texts.items(), whole, strict=True)
            for piece in cut_pieces(position, text, row, split)
        ]

    def _parse(self, params: Mapping[str, Json]) -> VectorParams:
        check_params(self._task, TASK_PARAMS["embedding"], params)
        check_embedding_params(params)
        check_task(params.get("task"), self._routes)
        pooling = self._pooling(params)
        dimension = self._dimension(pooling)
        if "truncate_dim" in params and params["truncate_dim"] > dimension:
            raise _bad_param(f"truncate_dim must be at most {dimension}, the length of this model's vectors.")
        cut = params.get("truncate_dim", self._truncate_dim)
        dimension, prompt = min(dimension, cut or dimension), self._prompts.choose(params)
        _check_precision(params, dimension)
        finite = params.get("precision") in (*WITH_RANGES, *PACKED)
        split = self._split(params, prompt)
        return VectorParams(pooling, prompt, params.get("task"), self._normalizes(params), dimension, split, finite)

    def _split(self, params: Mapping[str, Json], prompt: str) -> Split | None:
        if "split_tokens" not in params:
            return None
        self._words([])
        tokens, overlap = params["split_tokens"], params.get("split_overlap", 0)
        if self._limit is None:
            return Split(tokens, overlap)
        if tokens > self._limit:
            raise _bad_param(f"split_tokens must be at most {self._limit}, the number of tokens that this model takes.")
        [others] = self._encode([""], prompt)
        room = self._limit - len(others)
        if room < 2 * overlap or room < 1:
            raise _bad_param(
                f"split_overlap must be at most {max(room, 0) // 2}: of the {self._limit} tokens that this model "
                f"takes, {len(others)} are special ones or the prompt's."
            )
        return Split(min(tokens, room), overlap)


def media_refused(fields: Iterable[str], accepted: str) -> RecordError:
    """Return the error of a record with an image or a recording that the model does not take."""
    found = " and ".join(fields)
    return RecordError("wrong_type", f"The record has {found}; this model takes {accepted}. --column selects a field.")


def _check_precision(params: Mapping[str, Json], dimension: int) -> None:
    """Raise `bad_param` if vectors of that dimension cannot have the job's precision."""
    check_packs(params.get("precision", "float32"), dimension)
    ranges = decode_ranges(params["ranges"]) if "ranges" in params else None
    if ranges is not None and len(ranges.min) != dimension:
        raise _bad_param(
            f"ranges has {len(ranges.min):,} dimensions ({ranges.source}), and the vectors have {dimension:,}."
        )


def _outcomes(prepared: PreparedVectors, results: Sequence[Any]) -> dict[int, Outcome]:
    """Return the outcome of each input that has items, by position, from the results of all items."""
    if prepared.params.split is None:
        pairs = zip(prepared.items, results, strict=True)
        return {item.position: _whole_outcome(result, item.value, prepared.params) for item, result in pairs}
    groups: dict[int, list[int]] = defaultdict(list)
    for number, item in enumerate(prepared.items):
        groups[item.position].append(number)
    return {position: _outcome(prepared, results, numbers) for position, numbers in groups.items()}


def _whole_outcome(result: Any, row: TextRow, params: VectorParams) -> Outcome:
    """Return the outcome of a text that was not cut into pieces."""
    failure = _failure(result, params)
    return Outcome(failure=failure) if failure else Outcome(result, truncated=row.truncated)


def _outcome(prepared: PreparedVectors, results: Sequence[Any], numbers: Sequence[int]) -> Outcome:
    """Return the outcome of one input from those of its pieces; `numbers` are those of its items."""
    params, found = prepared.params, [results[number] for number in numbers]
    failure = next(filter(None, (_failure(result, params) for result in found)), None)
    if failure:
        return Outcome(failure=failure)
    truncated = any(prepared.items[number].value.truncated for number in numbers)
    pieces = [prepared.pieces[number] for number in numbers]
    output = [{"start": one.start, "end": one.end, "vector": vector} for one, vector in zip(pieces, found, strict=True)]
    return Outcome(output, truncated=truncated)


def _failure(result: Any, params: VectorParams) -> Failure | None:
    if isinstance(result, Failure):
        return result
    return _NOT_FINITE if params.finite and not np.isfinite(result).all() else None


def _bad_param(message: str) -> ModelError:
    return ModelError("bad_param", message)
