"""Reranking: how well documents fit a query, by a cross-encoder, which reads both together.

A model that is a classifier runs here; any other cross-encoder is run by the modules of sentence-transformers
(`workers.inference.tasks.module_runners`).
"""

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from workers.inference.core.samples import samples
from workers.inference.core.token_budget import TokenBudget
from workers.inference.embedding.cross_encoder_config import read_cross_encoder_config
from workers.inference.embedding.sentence_transformers_config import UnsupportedConfig
from workers.inference.loading.batch_invariance import ensure_batch_invariance
from workers.inference.loading.loader import ModelSource, load_model, load_tokenizer
from workers.inference.tasks.pair_runner import Pair, PairRunner, RerankParams
from workers.inference.text.packing import PROBE_TEXTS, PackingRunner, VarlenPacker, packs_faster
from workers.inference.text.tokenization import TokenFeatures, TokenizedText, encode, lower_case
from workers.inference.text.truncation import configured_token_limit
from workers.models.load_options import DEFAULT_OPTIONS, LoadOptions


class RerankRunner(PackingRunner, PairRunner):
    """Scores pairs by a classifier of transformers."""

    @classmethod
    def load(cls, task: str, model: Path | None, device: str, options: LoadOptions = DEFAULT_OPTIONS) -> PairRunner:
        """Return a runner of this class, or one that uses the modules of sentence-transformers."""
        with suppress(UnsupportedConfig):
            return cls(task, model, device, options)
        from workers.inference.tasks.module_runners import ModuleRerankRunner

        return ModuleRerankRunner(task, model, device, options)

    def __init__(self, task: str, model: Path | None, device: str, options: LoadOptions = DEFAULT_OPTIONS) -> None:
        """Load the model and its tokenizer.

        Raises:
            ModelError: as `load_model`; `unknown_module`, its configuration is not supported.
        """
        source = ModelSource.of(task, model, options)
        config = read_cross_encoder_config(source.directory)
        source = source.inside(config.transformer)
        self._device = device
        self._model = load_model(AutoModelForSequenceClassification, source, device)
        self._tokenizer = load_tokenizer(source)
        if config.lower_case:
            lower_case(self._tokenizer)
        self._prompts, self._activation = config.prompts, config.activation
        self._labels = int(self._model.config.num_labels)
        self._limit = configured_token_limit(config.max_tokens, self._model, self._tokenizer)
        self.budget = TokenBudget.of(device)
        self._tokenizer_lock = threading.Lock()  # a tokenizer cannot be reconfigured while another thread uses it
        if getattr(self._model.config.get_text_config(), "pad_token_id", None) is None:
            self.budget.items = 1  # a decoder finds a text's last token by the padding, and refuses batches without it
        ensure_batch_invariance(self.budget, self._model, self._trial_rows, self._trial)
        if packs_faster(self._model):
            rows = self._probe(PROBE_TEXTS)
            self._pack(
                lambda packer: self._forward(rows, packer),
                lambda: [self._trial([row])[0][0] for row in rows],
                first_tokens=True,
            )

    def _encode(self, pairs: Sequence[Pair], params: RerankParams) -> list[TokenizedText]:
        limit = min(filter(None, (self._limit, params.max_length)), default=None)
        with self._tokenizer_lock:
            return encode(self._tokenizer, [(params.prompt + query, document) for query, document in pairs], limit)

    def _logits(self, rows: Sequence[TokenizedText], params: RerankParams) -> Tensor:
        return self._forward([row.features for row in rows], self._packer)

    def _forward(self, rows: Sequence[TokenFeatures], packer: VarlenPacker | None) -> Tensor:
        with torch.inference_mode(), self.model_inputs(rows, packer) as inputs:
            logits: Tensor = self._model(**inputs).logits
            return logits

    def _trial_rows(self) -> list[TokenFeatures]:
        records = cast("Sequence[dict[str, Any]]", samples("rerank"))
        return self._probe([record["documents"][0] for record in records])

    def _trial(self, rows: Sequence[TokenFeatures]) -> list[list[Tensor]]:
        return [[row] for row in self._forward(rows, None)]

    def _probe(self, texts: Sequence[str]) -> list[TokenFeatures]:
        return [row.features for row in encode(self._tokenizer, [(PROBE_TEXTS[0], one) for one in texts], self._limit)]
