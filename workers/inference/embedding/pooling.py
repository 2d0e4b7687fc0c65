"""Pooling, dense layers and normalization: from the hidden states of a text's tokens to its vector.

Computes what sentence-transformers does (`Pooling`, `Dense`, `Normalize`), in float32 whatever the model's dtype.
"""

from collections.abc import Callable, Sequence
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from common.errors import ModelError
from workers.inference.embedding.sentence_transformers_config import DenseConfig


def pool(hidden: Tensor, mask: Tensor, modes: tuple[str, ...], skip: int = 0) -> Tensor:
    """Return one vector for each text, the results of `modes` concatenated.

    Args:
        hidden: (texts, tokens, width), float32, padded on the right.
        mask: (texts, tokens), 1 for a token and 0 for padding.
        modes: from `common.task_params.POOLING_MODES`.
        skip: how many tokens at the beginning, those of a prompt, are excluded.
    """
    chosen = mask.clone()
    chosen[:, :skip] = 0
    return torch.cat([_POOLINGS[mode](hidden, chosen) for mode in modes], dim=-1)


def _cls(hidden: Tensor, chosen: Tensor) -> Tensor:
    rows = torch.arange(len(hidden), device=hidden.device)
    return hidden[rows, chosen.argmax(dim=1)]


def _max(hidden: Tensor, chosen: Tensor) -> Tensor:
    return hidden.masked_fill(chosen.unsqueeze(-1) == 0, float("-inf")).amax(dim=1)


def _mean(hidden: Tensor, chosen: Tensor) -> Tensor:
    return _weighted(hidden, chosen.float())


def _mean_sqrt(hidden: Tensor, chosen: Tensor) -> Tensor:
    weights = chosen.float()
    return _weighted(hidden, weights) * weights.sum(dim=1, keepdim=True).sqrt()


def _weightedmean(hidden: Tensor, chosen: Tensor) -> Tensor:
    positions = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)
    return _weighted(hidden, chosen.float() * positions)


def _lasttoken(hidden: Tensor, chosen: Tensor) -> Tensor:
    rows = torch.arange(len(hidden), device=hidden.device)
    last = hidden.shape[1] - 1 - chosen.flip(1).argmax(dim=1)
    return hidden[rows, last]


def _weighted(hidden: Tensor, weights: Tensor) -> Tensor:
    total = weights.sum(dim=1, keepdim=True).clamp(min=1e-9)
    return torch.einsum("btw,bt->bw", hidden, weights) / total


_POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": _cls,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weightedmean,
    "lasttoken": _lasttoken,
}


def normalize(vectors: Tensor) -> Tensor:
    """Return vectors (texts, width) scaled to length 1."""
    scaled: Tensor = nn.functional.normalize(vectors, dim=-1)
    return scaled


class Dense(nn.Module):  # type: ignore[misc]
    """A linear layer over the vectors, with an activation; its weights have the names of sentence-transformers."""

    def __init__(self, config: DenseConfig) -> None:
        """Create the layer without its weights.

        Raises:
            ModelError: `unknown_module`, an activation that is not supported.
        """
        super().__init__()
        inputs, outputs = config.in_features, config.out_features
        projects = config.use_residual and inputs != outputs
        self.linear = nn.Linear(inputs, outputs, bias=config.bias)
        self.activation_function = make_activation(config.activation_function, "Its Dense layer")
        self.residual = nn.Linear(inputs, outputs, bias=False) if projects else nn.Identity()
        self._adds_input = config.use_residual

    def forward(self, vectors: Tensor) -> Tensor:
        """Return (texts, outputs) for (texts, inputs)."""
        result: Tensor = self.activation_function(self.linear(vectors))
        return result + self.residual(vectors) if self._adds_input else result


def load_dense(config: DenseConfig, device: str, *, allow_pickle: bool = False) -> Dense:
    """Return the layer with the weights in its directory.

    Raises:
        ModelError: `unsafe_weights`, there is only a pickle, which is not allowed; `missing_weights`, the file has
            other weights; `unknown_module`, an activation that is not supported.
    """
    path = config.directory / "model.safetensors"
    if not path.exists() and allow_pickle:
        path = config.directory / "pytorch_model.bin"
    if not path.exists():
        raise ModelError(
            "unsafe_weights",
            f"{config.directory} has no model.safetensors; other formats can run code when loaded. Convert it once "
            "where you trust it: SentenceTransformer(...).save(DIRECTORY) writes safetensors.",
        )
    layer = Dense(config)
    try:
        is_safe = path.suffix == ".safetensors"
        layer.load_state_dict(load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True))
    except (SafetensorError, UnpicklingError, RuntimeError) as error:
        raise ModelError("missing_weights", f"{path} does not have the layer's weights: {error}") from error
    ready: Dense = layer.to(device).eval().requires_grad_(False)  # in training, some activations add noise
    return ready


class Stages:
    """What follows pooling: the model's dense layers and normalization, then what the job asks for.

    Args:
        stages: dense layers by their configuration, anything else for a normalization.
        device: where the vectors are.
        allow_pickle: as for `load_dense`.

    Raises:
        ModelError: as `load_dense`.
    """

    def __init__(self, stages: Sequence[object], device: str, *, allow_pickle: bool = False) -> None:
        self._stages: list[Callable[[Tensor], Tensor]] = [
            load_dense(stage, device, allow_pickle=allow_pickle) if isinstance(stage, DenseConfig) else normalize
            for stage in stages
        ]

    def __call__(self, vectors: Tensor, normalized: bool | None, dimension: int) -> Tensor:
        """Return vectors of shape (texts, dimension).

        Args:
            vectors: (texts, width).
            normalized: whether they are scaled to length 1; None: as the model is configured.
            dimension: how many numbers stay, from the first.
        """
        for stage in self._stages:
            if normalized is not False or stage is not normalize:
                vectors = stage(vectors)
        vectors = vectors[:, :dimension]
        return normalize(vectors) if normalized else vectors


def make_activation(name: str, owner: str) -> nn.Module:
    """Return an activation of torch; a name in a model's file must not import anything else.

    Args:
        name: its full name, such as `torch.nn.modules.activation.Tanh`.
        owner: what has it, for messages.

    Raises:
        ModelError: `unknown_module`, it is not a class of torch.nn that takes no arguments.
    """
    package, _, kind = name.rpartition(".")
    found = getattr(nn, kind, None)
    if not (package.startswith("torch.nn") and isinstance(found, type) and issubclass(found, nn.Module)):
        raise ModelError("unknown_module", f"{owner} has the activation {name!r}; expected a class of torch.nn.")
    try:
        return found()
    except TypeError as error:
        raise ModelError("unknown_module", f"{owner} has the activation {name!r}: {error}") from error
