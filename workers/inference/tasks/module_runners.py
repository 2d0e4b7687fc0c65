"""Runners of models that the modules of sentence-transformers compute (`workers.inference.embedding.package_model`).

Their batches are those of all runners here: cut by tokens, halved when memory runs out, and named before they run.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from common.errors import ModelError
from common.params import check_params
from common.records import Json, Outcome
from common.task_outputs import MULTI_VECTOR
from common.task_params import TASK_PARAMS
from workers.inference.core.async_copy import PendingResult, copy_to_host_async
from workers.inference.core.batches import Item, run_batches
from workers.inference.core.runner import PreparingRunner, RunMonitor
from workers.inference.core.token_budget import TokenBudget
from workers.inference.embedding.module_files import PYLATE_DENSE
from workers.inference.embedding.package_model import PackageMedia, PackageModel, PackageText
from workers.inference.embedding.pooling import normalize
from workers.inference.embedding.prompts import check_task
from workers.inference.embedding.sentence_transformers_config import GENERAL, check_kind
from workers.inference.loading.loader import ModelSource
from workers.inference.tasks.embedding_media import MediaReader
from workers.inference.tasks.media_files import SharedFiles
from workers.inference.tasks.pair_runner import Pair, PairRunner, RerankParams
from workers.inference.tasks.vector_runner import VectorParams, VectorRunner
from workers.inference.text.tokenization import (
    NO_TOKENS,
    TokenizedText,
    check_text,
    encode,
    merge_outcomes,
    parse_inputs,
)
from workers.models.file_references import CONFIG, read_json
from workers.models.load_options import DEFAULT_OPTIONS, LoadOptions


class ModuleRunner(PreparingRunner):
    """A runner whose model is one of sentence-transformers, in `_package`."""

    budget: TokenBudget
    _package: PackageModel

    def is_deterministic(self, params: Mapping[str, Json]) -> bool:
        """Return True: forward passes are deterministic."""
        return True

    def memory_bytes(self) -> int:
        """Return the bytes of the model's parameters and buffers."""
        return self._package.memory_bytes()

    def run_info(self) -> dict[str, Json]:
        """Return the model's dtype, its attention, and the library that runs it."""
        return self._package.run_info()


class ModuleEmbeddingRunner(ModuleRunner, VectorRunner):
    """Turns texts, images and recordings into vectors by a `SentenceTransformer`."""

    def __init__(self, task: str, model: Path | None, device: str, options: LoadOptions = DEFAULT_OPTIONS) -> None:
        """Load the model.

        Raises:
            CodedError: as `PackageModel`.
        """
        source = ModelSource.of(task, model, options)
        self._task = task
        self._package = PackageModel("SentenceTransformer", source, device)
        self._media = MediaReader(self._package, SharedFiles(options.shared, options.max_file_bytes))
        self._prompts, self._routes = self._package.prompts, self._package.routes
        self._limit, self._truncate_dim = self._package.max_tokens, self._package.model.truncate_dim
        self.budget = TokenBudget.of(device)
        self._width = 0
        self._package.restrict_batches(self.budget, self._trial)

    def _trial(self, rows: Sequence[PackageText]) -> Sequence[Tensor]:
        vectors = self._embeddings(rows, "", None)
        self._width = vectors.shape[1]
        return list(vectors)

    def _embeddings(self, rows: Sequence[PackageText], prompt: str, task: str | None) -> Tensor:
        vectors: Tensor = self._package.forward(rows, prompt, task)["sentence_embedding"]
        return vectors.float()

    def _encode(self, texts: Sequence[str], prompt: str) -> list[PackageText]:
        return self._package.encode(texts, prompt)

    def _vectors(self, rows: Sequence[PackageText], params: VectorParams) -> Sequence[Any] | PendingResult[Any]:
        vectors = self._embeddings(rows, params.prompt, params.task)[:, : params.dimension]
        if params.normalize:
            vectors = normalize(vectors)
        return copy_to_host_async([vectors], lambda host: list(host[0].numpy()))

    def _prepare_media(self, fields: Mapping[str, Json], blob: bytes | None, params: VectorParams) -> PackageMedia:
        return self._media.read(fields, blob, params.prompt, params.task)

    def _dimension(self, pooling: tuple[str, ...]) -> int:
        return self._width

    def _normalizes(self, params: Mapping[str, Json]) -> bool | None:
        if params.get("normalize") is False and any(type(one).__name__ == "Normalize" for one in self._package.model):
            raise _bad_param("normalize=false is not for this model: one of its own modules scales the vectors.")
        return super()._normalizes(params)

    def _words(self, texts: Sequence[str]) -> list[TokenizedText]:
        tokenizer = self._package.tokenizer
        if tokenizer is None or not tokenizer.is_fast:
            raise _bad_param("split_tokens needs a tokenizer that knows the place of each token; this model has none.")
        with self._package.tokenizer_lock:
            return encode(tokenizer, texts, None, special=False)


class ModuleRerankRunner(ModuleRunner, PairRunner):
    """Scores pairs by a `CrossEncoder`, such as a language model that is asked for yes or no."""

    def __init__(self, task: str, model: Path | None, device: str, options: LoadOptions = DEFAULT_OPTIONS) -> None:
        """Load the model.

        Raises:
            CodedError: as `PackageModel`; `unknown_module`, it is a model of another kind.
        """
        source = ModelSource.of(task, model, options)
        if (source.directory / "modules.json").exists():
            check_kind(source.directory, "CrossEncoder")
        self._package = PackageModel("CrossEncoder", source, device)
        self._prompts = self._package.prompts
        self._labels, self._activation = self._package.model.num_labels, self._package.model.activation_fn
        self.budget = TokenBudget.of(device)
        self._package.restrict_batches(self.budget, lambda rows: list(self._forward(rows, "")), pairs=True)

    def _encode(self, pairs: Sequence[Pair], params: RerankParams) -> list[PackageText]:
        if params.max_length is not None:
            raise _bad_param("max_length is not for this model: its own modules cut long texts.")
        return self._package.encode(pairs, params.prompt)

    def _logits(self, rows: Sequence[PackageText], params: RerankParams) -> Tensor:
        return self._forward(rows, params.prompt)

    def _forward(self, rows: Sequence[PackageText], prompt: str) -> Tensor:
        scores: Tensor = self._package.forward(rows, prompt, None)["scores"]
        return scores


@dataclass(frozen=True, slots=True)
class _TextParams:
    """The parameters of a job that every model of sentence-transformers takes, and those of its task."""

    prompt: str
    task: str | None
    own: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class _PreparedTexts:
    """The texts of a chunk."""

    params: _TextParams
    items: Sequence[Item[PackageText]]
    refused: Mapping[int, Outcome]


class ModuleTextRunner(ModuleRunner):
    """A runner that gives an output of its own kind for each text."""

    kind: str  #: the class of sentence-transformers

    def __init__(self, task: str, model: Path | None, device: str, options: LoadOptions = DEFAULT_OPTIONS) -> None:
        """Load the model.

        Raises:
            CodedError: as `PackageModel`; `unknown_module`, it is a model of another kind; `missing_weights`, it lacks
                what the task needs.
        """
        source = ModelSource.of(task, model, options)
        self._task = task
        self._check(source.directory)
        self._package = PackageModel(self.kind, source, device)
        self.budget = TokenBudget.of(device)
        trial = _TextParams("", None, {})
        self._package.restrict_batches(self.budget, lambda rows: self._outputs(rows, trial))

    @abstractmethod
    def _check(self, directory: Path) -> None:
        """Refuse a model that lacks what the task needs: the library would add layers with random weights."""

    @abstractmethod
    def _outputs(self, rows: Sequence[PackageText], params: _TextParams) -> list[Tensor]:
        """Return one tensor for each text of a batch, on the device."""

    @abstractmethod
    def _finish(self, found: Tensor, params: _TextParams) -> Json:
        """Return the output of a record from its tensor, on the host."""

    def prepare(self, inputs: Sequence[Json], params: Mapping[str, Json]) -> _PreparedTexts:
        """Return the texts with their numbers of tokens."""
        checked = check_params(self._task, TASK_PARAMS[self._task], params)
        check_task(checked.get("task"), self._package.routes)
        parsed = _TextParams(self._package.prompts.choose(checked), checked.get("task"), checked)
        texts, refused = parse_inputs(inputs, check_text)
        rows = dict(zip(texts, self._package.encode(list(texts.values()), parsed.prompt, parsed.task), strict=True))
        items = [Item(position, len(row), row) for position, row in rows.items() if len(row)]
        refused |= {position: Outcome(failure=NO_TOKENS) for position, row in rows.items() if not len(row)}
        return _PreparedTexts(parsed, items, refused)

    def run_prepared(self, prepared: _PreparedTexts, monitor: RunMonitor) -> list[Outcome]:
        """Return one outcome for each text."""

        def forward(rows: Sequence[PackageText]) -> Sequence[Any] | PendingResult[Any]:
            found = self._outputs(rows, prepared.params)
            sizes = [len(one) for one in found]
            return copy_to_host_async(
                [torch.cat(found)],
                lambda host: [self._finish(one, prepared.params) for one in host[0].split(sizes)],
            )

        results = run_batches(prepared.items, forward, self.budget, monitor)
        return merge_outcomes(prepared.refused, prepared.items, results)


class SparseEmbeddingRunner(ModuleTextRunner):
    """Turns texts into sparse vectors by a `SparseEncoder`: the dimensions that are not zero, and their values."""

    kind = "SparseEncoder"

    def _check(self, directory: Path) -> None:
        if (directory / "modules.json").exists():
            check_kind(directory, self.kind)
            return
        architectures = read_json(directory / CONFIG).get("architectures") or ["none"]
        if not any(str(name).endswith("ForMaskedLM") for name in architectures):
            raise ModelError(
                "missing_weights",
                f"{directory} is not a sparse encoder: expected a model saved by SparseEncoder, or a masked language "
                f"model, found {', '.join(map(str, architectures))}.",
            )

    def _outputs(self, rows: Sequence[PackageText], params: _TextParams) -> list[Tensor]:
        limit = params.own.get("max_active_dims") or self._package.model.max_active_dims
        more = {} if limit is None else {"max_active_dims": limit}
        vectors: Tensor = self._package.forward(rows, params.prompt, params.task, **more)["sentence_embedding"]
        if limit is not None:
            from sentence_transformers.util import select_max_active_dims

            vectors = select_max_active_dims(vectors, max_active_dims=limit)
        return _coordinates(vectors)

    def _finish(self, found: Tensor, params: _TextParams) -> Json:
        indices = found[:, 0].int()
        output = {"indices": indices.numpy(), "values": found[:, 1].numpy()}
        if params.own.get("tokens"):
            output["tokens"] = self._package.tokenizer.convert_ids_to_tokens(indices.tolist())
        return output


def _coordinates(vectors: Tensor) -> list[Tensor]:
    """Return for each vector the places of its numbers that are not zero, and these, of shape (numbers, 2).

    Places below 2^24 are exact in float32: one tensor, and so one copy from the device, holds both.
    """
    rows, places = vectors.nonzero(as_tuple=True)
    found = torch.stack((places.float(), vectors[rows, places].float()), dim=1)
    return list(found.split(torch.bincount(rows, minlength=len(vectors)).tolist()))


class MultiVectorRunner(ModuleTextRunner):
    """Turns texts into one vector for each of their tokens by a `MultiVectorEncoder`."""

    kind = "MultiVectorEncoder"

    def output_type(self, params: Mapping[str, Json]) -> pa.DataType:
        """Return the type of a list of float32 vectors."""
        return MULTI_VECTOR.arrow_type(length=self._width)

    def _check(self, directory: Path) -> None:
        architectures = [str(name) for name in read_json(directory / CONFIG).get("architectures") or ["none"]]
        if (directory / "modules.json").exists():
            says_nothing = "model_type" not in read_json(directory / GENERAL)
            if not (says_nothing and PYLATE_DENSE in str(read_json(directory / "modules.json", list))):
                check_kind(directory, self.kind)
        elif not any(name == "HF_ColBERT" or name.endswith("ForRetrieval") for name in architectures):
            raise ModelError(
                "missing_weights",
                f"{directory} is not a late-interaction model: expected one saved by MultiVectorEncoder, PyLate or "
                f"ColBERT, found {', '.join(architectures)}.",
            )

    def _outputs(self, rows: Sequence[PackageText], params: _TextParams) -> list[Tensor]:
        features = self._package.forward(rows, params.prompt, params.task)
        masks = features["attention_mask"].bool()
        states = features["token_embeddings"][masks].float()
        self._width = states.shape[1]
        return list(states.split(masks.sum(dim=1).tolist()))

    def _finish(self, found: Tensor, params: _TextParams) -> Json:
        return list(found.numpy())


def _bad_param(message: str) -> ModelError:
    return ModelError("bad_param", message)
