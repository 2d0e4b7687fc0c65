"""From the hidden states of a text's tokens to its one vector: pooling, linear layers, normalisation.

The arithmetic is that of sentence-transformers (`Pooling`, `Dense`, `Normalize`),
in float32 whatever the model runs in.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from common.errors import ModelError
from workers.inference.embedding.sentence_transformers_config import DenseConfig


def pool(hidden: Tensor, mask: Tensor, modes: tuple[str, ...], skip: int = 0) -> Tensor:
    """Return one vector for each text, the results of `modes` joined.

    Args:
        hidden: (texts, tokens, width), float32, padded on the right.
        mask: (texts, tokens), 1 for a token and 0 for padding.
        modes: from `common.task_params.POOLING_MODES`.
        skip: how many tokens at the beginning, those of a prompt, are left out.
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
    """Return (texts, width) as it came, each row scaled to length 1."""
    scaled: Tensor = nn.functional.normalize(vectors, dim=-1)
    return scaled


class Dense:
    """A linear layer over the vectors, and its activation."""

    def __init__(self, config: DenseConfig, weights: Mapping[str, Tensor]) -> None:
        """Take the layer's weights, by the names that `Linear` modules `linear` and `residual` give them.

        Raises:
            KeyError: a weight is missing, or has another shape.
            ModelError: `unknown_module`, an activation that we do not have.
        """
        shape = (config.outputs, config.inputs)
        self._weight = _shaped(weights, "linear.weight", shape)
        self._bias = _shaped(weights, "linear.bias", shape[:1]) if config.bias else None
        self._activation = _activation(config.activation, weights)
        self._add_input = config.residual
        projected = config.residual and config.inputs != config.outputs
        self._residual = _shaped(weights, "residual.weight", shape) if projected else None

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return (texts, outputs) for (texts, inputs)."""
        result: Tensor = self._activation(nn.functional.linear(vectors, self._weight, self._bias))
        if not self._add_input:
            return result
        return result + (vectors if self._residual is None else nn.functional.linear(vectors, self._residual))


def load_dense(config: DenseConfig, device: str, *, allow_pickle: bool = False) -> Dense:
    """Return the layer with the weights in its directory.

    Raises:
        ModelError: `unsafe_weights`, only a pickle where none is allowed; `missing_weights`, it holds other weights;
            `unknown_module`, an activation that torch does not have.
    """
    path = config.directory / "model.safetensors"
    if not path.exists() and allow_pickle:
        path = config.directory / "pytorch_model.bin"
    if not path.exists():
        raise ModelError(
            "unsafe_weights",
            f"{config.directory} has no model.safetensors; other formats can run code when opened. Convert it once, "
            "where you trust it: SentenceTransformer(...).save(DIRECTORY) writes safetensors.",
        )
    try:
        return Dense(config, {name: value.float() for name, value in _weights(path, device).items()})
    except (SafetensorError, UnpicklingError, KeyError) as error:
        raise ModelError("missing_weights", f"{path} does not hold the layer's weights: {error}") from error


def _weights(path: Path, device: str) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        return dict(load_file(path, device))
    return dict(torch.load(path, map_location=device, weights_only=True))


def _shaped(weights: Mapping[str, Tensor], name: str, shape: Sequence[int]) -> Tensor:
    found = weights.get(name)
    if found is None or found.shape != torch.Size(shape):
        shapes = {key: tuple(value.shape) for key, value in weights.items()}
        raise KeyError(f"expected {name} of shape {tuple(shape)}, found {shapes}")
    return found


def _activation(name: str, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return an activation of torch's own, with its weights (PReLU's slope) if it has any.

    A name in a file of the model's must not choose what is imported.
    """
    package, _, kind = name.rpartition(".")
    found = getattr(nn, kind, None)
    if package.startswith("torch.nn") and isinstance(found, type) and issubclass(found, nn.Module):
        try:
            activation = found().eval().requires_grad_(False)  # noise is for training
        except TypeError as error:
            raise ModelError("unknown_module", f"Its Dense layer has the activation {name!r}: {error}") from error
        usual = activation.state_dict()
        own = {key: _shaped(weights, f"activation_function.{key}", value.shape) for key, value in usual.items()}
        activation.load_state_dict(own, assign=True)
        return activation
    raise ModelError("unknown_module", f"Its Dense layer has the activation {name!r}; expected a class of torch.nn.")
