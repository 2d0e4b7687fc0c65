"""Configuration of cross-encoders: what becomes of a pair of texts, from tokens to scores.

Most rerankers are a classifier of transformers, with or without the files of sentence-transformers. Any other, such as
a language model that is asked for yes or no, is run by the modules of sentence-transformers.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from common.errors import ModelError
from common.records import Json
from workers.inference.embedding.pooling import make_activation
from workers.inference.embedding.prompts import Prompts
from workers.inference.embedding.sentence_transformers_config import (
    GENERAL,
    GENERAL_KEYS,
    GeneralConfig,
    TransformerOutput,
    check_keys,
    check_kind,
    convert,
    max_tokens_of,
    read_modules,
    read_transformer,
    unsupported,
)
from workers.models.file_references import CONFIG, TOKENIZER_CONFIG, read_json

_SCORES = TransformerOutput("sequence-classification", "scores", "logits")


class _General(GeneralConfig):
    model_type: str = "CrossEncoder"
    activation_fn: str | None = None


@dataclass(frozen=True, slots=True)
class CrossEncoderConfig:
    """How a classifier scores pairs of texts."""

    transformer: Path  #: directory of the model and its tokenizer
    activation: nn.Module | None = None  #: from logits to scores; None: sigmoid for one label, else none
    max_tokens: int | None = None
    lower_case: bool = False
    prompts: Prompts = field(default_factory=Prompts)


def read_cross_encoder_config(directory: Path) -> CrossEncoderConfig:
    """Return the configuration of a model that is a classifier.

    Raises:
        UnsupportedConfig: it is not, or has a setting that is not known here.
        ModelError: `unknown_module`, a module that is not part of sentence-transformers, or an activation that is not
            one of torch; `not_a_model`, a file that cannot be read.
    """
    config = read_json(directory / CONFIG)
    if not (directory / "modules.json").exists():
        if any(name.endswith("ForCausalLM") for name in _texts(config.get("architectures"))):
            raise unsupported("it is a language model.")
        if (directory / "chat_template.jinja").exists() or read_json(directory / TOKENIZER_CONFIG).get("chat_template"):
            raise unsupported("its tokenizer has a chat template.")
        return CrossEncoderConfig(directory, _activation(None, config))
    check_kind(directory, "CrossEncoder")
    kinds, [path, *_] = read_modules(directory)
    if kinds != ["Transformer"]:
        raise unsupported(f"its modules are {', '.join(kinds)}; expected a Transformer alone.")
    raw = read_json(directory / GENERAL)
    check_keys(GENERAL, raw, GENERAL_KEYS | {"activation_fn"})
    general: _General = convert(raw, _General, directory / GENERAL)
    transformer = read_transformer(path, _SCORES)
    if transformer.modality == "message":
        raise unsupported("its Transformer takes messages.")
    return CrossEncoderConfig(
        transformer=path,
        activation=_activation(general.activation_fn, read_json(path / CONFIG)),
        max_tokens=max_tokens_of(transformer, path),
        lower_case=bool(transformer.do_lower_case),
        prompts=general.named_prompts,
    )


def _activation(name: str | None, config: dict[str, Json]) -> nn.Module | None:
    """Return the model's activation; older files name it in config.json."""
    own = config.get("sentence_transformers")
    older = own.get("activation_fn") if isinstance(own, dict) else None
    found = next(filter(None, (name, older, config.get("sbert_ce_default_activation_function"))), None)
    if found is None:
        return None
    if not isinstance(found, str):
        raise ModelError("not_a_model", f"The configuration names the activation {found!r}; expected a class of torch.")
    return make_activation(found, "The model")


def _texts(value: Any) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
