"""Sequence packing (varlen attention): the texts of a batch in one row without padding, for encoders.

An encoder treats all tokens alike except for positions and attention. So the packed row brings its own positions, and
our attention, registered with transformers (`AttentionInterface`), lets each token see only its own sequence; plain
`sdpa` would silently let it see the whole row. A head that reads the first token of each row gets the first token of
each sequence. Whether a model's code works with this is tested: a packed probe is compared with the padded one
(`find_packer`), which also finds the first position (2 for RoBERTa).

Needless once transformers itself runs any encoder on packed rows, `token_type_ids` included
(`DataCollatorWithFlattening` of 5.x drops them), and gives its head the first token of each sequence.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, AttentionInterface, PreTrainedModel

from common.records import Json
from workers.inference.core.device_errors import is_device_lost, is_out_of_memory
from workers.inference.core.fallbacks import count_fallback
from workers.inference.loading.cpu_attention import attend_packed
from workers.inference.loading.dtypes import is_reduced_precision
from workers.inference.loading.loader import ModelRunner
from workers.inference.loading.outputs_match import outputs_match
from workers.inference.text.tokenization import TokenFeatures, accepted_features, on_device, pad

logger = logging.getLogger(__name__)

#: Name of our attention in transformers.
ATTENTION = "hugqueue_varlen"
#: Texts of several lengths that test whether a model can be packed.
#: Two are about as long, and one is longer than the sliding windows of most encoders.
PROBE_TEXTS = (
    "A short text.",
    "The old library stands beside the river, and opens at nine.",
    "The old bridge stands behind the harbor, and opens at noon today.",
    "Water",
    "It boils. " * 90,
)
#: The attribute of a base model that holds the encoder's layers; a base model without it has no pooler behind them.
_LAYERS = ("encoder", "transformer")


def varlen_attention(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return the attention output of a packed row, of shape (1, tokens, heads, width).

    Args:
        query: (1, heads, tokens, width).
        key: the same.
        value: the same.
        cu_seq_lens_q: (sequences + 1,) int32, where each sequence begins, and the end.
        max_length_q: tokens of the longest one.
        options: `scaling` of the scores, 1 / sqrt(width) by default; `sliding_window`, 1 more than the neighbors that
            a token sees on each side (like flash attention in transformers), all by default; others are ignored.
    """
    scaling, window = options.get("scaling"), options.get("sliding_window")
    side = None if window is None else window - 1
    if query.is_cuda:
        return _varlen_kernel(query, key, value, cu_seq_lens_q, max_length_q, scaling, side), None
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend_packed(query, key, value, cu_seq_lens_q, scaling, side), None


def _varlen_kernel(
    query: Tensor, key: Tensor, value: Tensor, begins: Tensor, longest: int, scaling: float | None, side: int | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # works only in a torch built for CUDA

    options: dict[str, Any] = {}  # only what differs from the defaults: torch 2.10 has neither of them
    if scaling not in (None, query.shape[-1] ** -0.5):
        options["scale"] = scaling
    if side is not None:
        options["window_size"] = (side, side)
    rows = (part[0].transpose(0, 1) for part in (query, key, value))
    return varlen_attn(*rows, begins, begins, longest, longest, **options)[None]


AttentionInterface.register(ATTENTION, varlen_attention)


class VarlenPacker:
    """Packs the batches of one model.

    Args:
        model: an encoder with any head.
        device: where it is.
        position: the position of the first token of a sequence.
        first_tokens: whether the head reads only the first token of each sequence.
    """

    def __init__(self, model: Any, device: str, *, position: int, first_tokens: bool) -> None:
        self._model = model
        self._device = device
        self._position = position
        self._positions = getattr(model.config, "max_position_embeddings", math.inf)
        self._first_tokens = first_tokens
        parts = (part.config for part in model.modules() if isinstance(part, PreTrainedModel))
        self._configs = list({id(config): config for config in parts}.values())

    @contextmanager
    def packed(self, rows: Sequence[TokenFeatures]) -> Iterator[dict[str, Any]]:
        """Yield the model's arguments for these tokenized texts; while entered, the model attends by sequence."""
        lengths = [len(row["input_ids"]) for row in rows]
        if self._position + max(lengths) > self._positions:  # on a GPU, the end of the process
            raise IndexError(f"{max(lengths)} tokens from position {self._position} of {self._positions}")
        begins = np.cumsum([0, *lengths])
        names = [name for name in rows[0] if name != "attention_mask"]
        columns = np.empty((len(names) + 1, begins[-1]), np.int64)  # all in one copy to the device
        for column, name in zip(columns, names, strict=False):
            np.concatenate([row[name] for row in rows], out=column)
        columns[-1] = _positions(lengths, begins) + self._position
        on_model = on_device(torch.from_numpy(columns), self._device)
        inputs: dict[str, Any] = {name: row[None] for name, row in zip((*names, "position_ids"), on_model, strict=True)}
        bounds = on_device(torch.from_numpy(begins.astype(np.int32)), self._device)
        inputs |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
        inputs |= {"max_length_q": max(lengths), "max_length_k": max(lengths)}
        with _attention(self._configs), self._first_tokens_only(bounds[:-1]):
            yield inputs

    @contextmanager
    def _first_tokens_only(self, begins: Tensor) -> Iterator[None]:
        """Within the block, give a head that reads first tokens one row per sequence, with that token alone."""
        if not self._first_tokens:
            yield
            return
        base = self._model.base_model
        layers = next((getattr(base, name) for name in _LAYERS if hasattr(base, name)), base)

        def keep_first(_module: Any, _args: Any, output: Any) -> Any:
            output["last_hidden_state"] = output["last_hidden_state"][0, begins.long()][:, None]
            return output

        hook = layers.register_forward_hook(keep_first)
        try:
            yield
        finally:
            hook.remove()


def find_packer(
    model: Any, device: str, agrees: Callable[[VarlenPacker], bool], *, first_tokens: bool = False
) -> VarlenPacker | None:
    """Return a packer for `model`, None if outputs of packed rows differ or packing fails.

    Args:
        model: an encoder with any head.
        device: where it is.
        agrees: runs a probe of several lengths by a packer; returns whether it gives what padded rows give.
        first_tokens: whether the head reads only the first token of each sequence.
    """
    if _is_causal(model):
        return None
    padding = getattr(model.config, "pad_token_id", None)
    for position in dict.fromkeys((0, 0 if padding is None else padding + 1)):
        packer = VarlenPacker(model, device, position=position, first_tokens=first_tokens)
        try:
            if agrees(packer):
                return packer
        except Exception as error:  # any architecture may be loaded, and may raise anything
            if is_out_of_memory(error) or is_device_lost(error):
                raise
            logger.debug("%s cannot be packed from position %d", type(model).__name__, position, exc_info=True)
            if device != "cpu":  # its kernel may be at fault
                count_fallback("packing", error)
    logger.info("%s runs padded: packed rows fail, or their outputs differ", type(model).__name__)
    return None


def _is_causal(model: Any) -> bool:
    """Whether tokens see only those before them; not all architectures say so of their attention.

    Packed rows cannot give the same then, and heads that read the last token of each text look for it where there is
    none: an index out of range is an exception on a CPU, but on a GPU the end of the process.
    """
    if any(getattr(module, "is_causal", False) for module in model.modules()):
        return True
    kind, has_head = type(model.config), model.base_model is not model
    return has_head and kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING


class PackingRunner(ModelRunner):
    """A runner that packs its batches if its model supports that."""

    _device: str
    _tokenizer: Any
    _packer: VarlenPacker | None = None

    def run_info(self) -> dict[str, Json]:
        """Return how the model runs; packed rows use the attention of this module."""
        return super().run_info() | ({"attention": ATTENTION} if self._packer else {})

    @contextmanager
    def model_inputs(self, rows: Sequence[TokenFeatures], packer: VarlenPacker | None) -> Iterator[dict[str, Any]]:
        """Yield the model's arguments for a batch of tokenized texts, packed by `packer` or padded."""
        names = accepted_features(rows[0], self._model)
        features = [{name: row[name] for name in names} for row in rows]
        if packer is None:
            yield pad(features, self._tokenizer, self._device)
            return
        with packer.packed(features) as inputs:
            yield inputs

    def _pack(
        self,
        packed: Callable[[VarlenPacker], Iterable[Tensor]],
        alone: Callable[[], Iterable[Tensor]],
        *,
        first_tokens: bool = False,
    ) -> bool:
        """Pack from now on if the model supports that; return whether it does.

        Args:
            packed: returns the outputs of a probe of several lengths, packed.
            alone: returns the outputs of each of its texts alone, in the same order.
            first_tokens: whether the head reads only the first token of each sequence.
        """
        if self.budget.items == 1:  # a text's neighbors change its output
            return False
        loose = is_reduced_precision(self._model)
        expected = cache(lambda: [output.cpu().float() for output in alone()])

        def agrees(packer: VarlenPacker) -> bool:
            with torch.inference_mode():
                pairs = zip(packed(packer), expected(), strict=True)
                return all(outputs_match(found, other, loose=loose) for found, other in pairs)

        self._packer = find_packer(self._model, self._device, agrees, first_tokens=first_tokens)
        self.budget.pads_to_longest = self._packer is None
        return self._packer is not None


def split_rows(states: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """Return the states of each row's tokens, of shape (tokens, ...), from a padded batch or a packed one.

    Args:
        states: (rows, longest, ...), or (1, tokens, ...).
        lengths: tokens of each row.
    """
    if len(states) == 1:
        return list(states[0].split(list(lengths)))
    return [state[:length] for state, length in zip(states, lengths, strict=True)]


def unpack(states: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return the states of a packed row, (1, tokens, width), as a padded batch, (texts, longest, width).

    Args:
        states: of all tokens, text after text.
        lengths: tokens of each text.
    """
    longest = max(lengths)
    # Computed on the host: reading a mask from the GPU would wait for all it computes.
    rows = np.repeat(np.arange(len(lengths)), lengths)
    positions = rows * longest + _positions(lengths, np.cumsum([0, *lengths]))
    spread = states.new_zeros(len(lengths) * longest, states.shape[-1])
    spread[on_device(torch.from_numpy(positions), str(states.device))] = states[0]
    return spread.view(len(lengths), longest, -1)


def _positions(lengths: Sequence[int], begins: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the position of each token in its own text, from 0; `begins` are the bounds of the texts."""
    return np.arange(begins[-1]) - np.repeat(begins[:-1], lengths)


def packs_faster(model: Any) -> bool:
    """Whether packed rows are faster: on CPUs; and on a recent GPU in half precision."""
    if model.device.type == "cpu":
        return True
    cuda: bool = model.device.type == "cuda" and model.dtype in (torch.float16, torch.bfloat16)
    return cuda and torch.cuda.get_device_capability(model.device) >= (8, 0)


@contextmanager
def _attention(configs: Sequence[Any]) -> Iterator[None]:
    """Within the block, let the parts of a model with these configurations attend by our attention."""
    own = [config._attn_implementation_internal for config in configs]
    try:
        for config in configs:
            config._attn_implementation_internal = ATTENTION  # the property would change the parts below too, for good
        yield
    finally:
        for config, before in zip(configs, own, strict=True):
            config._attn_implementation_internal = before
