"""Static embeddings: the mean of the vectors of a text's tokens, looked up in a table (model2vec, `StaticEmbedding`).

Nothing is padded and there is next to nothing to compute, so a Python object for each token, or for each of several
steps, would take most of the time. All texts of a chunk are one batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import embedding_bag

from common.errors import ModelError, first_line
from common.records import Json
from workers.inference.core.async_copy import PendingResult, copy_to_host_async
from workers.inference.core.token_budget import TokenBudget
from workers.inference.embedding.pooling import Stages
from workers.inference.embedding.sentence_transformers_config import DenseConfig, read_static_config
from workers.inference.loading.loader import ModelSource
from workers.inference.tasks.vector_runner import VectorParams, VectorRunner
from workers.inference.text.tokenization import TokenizedText
from workers.models.load_options import DEFAULT_OPTIONS, LoadOptions
from workers.models.model_files import check_downloaded, check_files

_ALL_TOKENS = 1 << 20
#: Texts that are tokenized together: what the tokenizer keeps of each takes far more memory than its ids.
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class _Ids:
    """The token ids of a text."""

    ids: np.ndarray
    truncated: bool = False

    def __len__(self) -> int:
        return len(self.ids)


class StaticEmbeddingRunner(VectorRunner):
    """Turns texts into vectors by a table of vectors, one for each token of the vocabulary."""

    def __init__(self, task: str, model: Path | None, device: str, options: LoadOptions = DEFAULT_OPTIONS) -> None:
        """Load the table and the tokenizer.

        Raises:
            UnsupportedConfig: the model has other modules.
            ModelError: `not_a_model`, `no_tokenizer`, `missing_weights`, `unsafe_weights`.
        """
        source = ModelSource.of(task, model, options)
        config = read_static_config(source.directory)
        self._task = task
        self._device = device
        self._prompts, self._truncate_dim = config.prompts, config.truncate_dim
        check_downloaded(config.transformer)
        check_files(str(config.transformer), [path.name for path in config.transformer.iterdir()], options.allow_pickle)
        self._tokenizer = _load_tokenizer(config.transformer / "tokenizer.json")
        self._table = _load_table(config.transformer / "model.safetensors").to(device)
        self._stages = Stages(config.stages, device, allow_pickle=options.allow_pickle)
        self._width = next(
            (stage.out_features for stage in reversed(config.stages) if isinstance(stage, DenseConfig)),
            self._table.shape[1],
        )
        self.budget = TokenBudget(_ALL_TOKENS, _ALL_TOKENS, pads_to_longest=False, calibrated=True)

    def is_deterministic(self, params: Mapping[str, Json]) -> bool:
        """Return True: it is a mean of rows of a table."""
        return True

    def memory_bytes(self) -> int:
        """Return the bytes of the table."""
        return int(self._table.nbytes)

    def run_info(self) -> dict[str, Json]:
        """Return the dtype of the table."""
        return {"dtype": str(self._table.dtype).removeprefix("torch.")}

    def _encode(self, texts: Sequence[str], prompt: str) -> list[_Ids]:
        return [
            row for start in range(0, len(texts), _BLOCK) for row in self._block(texts[start : start + _BLOCK], prompt)
        ]

    def _block(self, texts: Sequence[str], prompt: str) -> list[_Ids]:
        found = self._tokenizer.encode_batch_fast([prompt + text for text in texts], add_special_tokens=False)
        ids = [one.ids for one in found]
        ends = list(accumulate(map(len, ids), initial=0))
        flat = np.fromiter(chain.from_iterable(ids), np.int64, ends[-1])
        return [_Ids(flat[begin:end]) for begin, end in pairwise(ends)]

    def _words(self, texts: Sequence[str]) -> list[TokenizedText]:
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [
            TokenizedText({"input_ids": np.array(one.ids, np.int64)}, truncated=False, encoding=one) for one in found
        ]

    def _vectors(self, rows: Sequence[_Ids], params: VectorParams) -> Sequence[Any] | PendingResult[Any]:
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        ids = np.concatenate([row.ids for row in rows])
        offsets = np.cumsum(lengths) - lengths
        with torch.inference_mode():
            vectors = embedding_bag(self._on_device(ids), self._table, self._on_device(offsets), mode="mean").float()
            vectors = self._stages(vectors, params.normalize, params.dimension)
        return copy_to_host_async([vectors], lambda host: list(host[0].numpy()))

    def _on_device(self, numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(numbers).to(self._device)

    def _dimension(self, pooling: tuple[str, ...]) -> int:
        return int(self._width)


def _load_tokenizer(path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare exceptions
        raise ModelError("no_tokenizer", f"The tokenizer in {path} cannot be loaded: {first_line(error)}") from error
    tokenizer.no_padding()
    return tokenizer


def _load_table(path: Path) -> Tensor:
    """Return the vectors of all tokens, of shape (vocabulary, width).

    Raises:
        ModelError: `unsafe_weights`, there are no safetensors; `missing_weights`, they hold something else.
    """
    if not path.is_file():
        raise ModelError(
            "unsafe_weights",
            f"{path.parent} has no model.safetensors; other formats can run code when loaded. Convert it once where "
            "you trust it: SentenceTransformer(...).save(DIRECTORY) writes safetensors.",
        )
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError("missing_weights", f"{path} cannot be read: {first_line(error)}") from error
    table = weights.get("embedding.weight", weights.get("embeddings"))  # the second name is model2vec's
    if table is None or table.dim() != 2:
        found = ", ".join(list(weights)[:4]) or "nothing"
        raise ModelError(
            "missing_weights", f"{path} has no table of vectors: expected embedding.weight, found {found}."
        )
    if "embedding.weight" not in weights:  # as model2vec does: several tokens may share a row, and each has a weight
        if (mapping := weights.get("mapping")) is not None:
            table = table[mapping.long()]
        if (scale := weights.get("weights")) is not None:
            table = (table.float() * scale[:, None]).contiguous()
    return table
