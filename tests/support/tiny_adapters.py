"""Tiny adapters of peft, with weights that change what the base model says."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


def save_adapter(
    base: Path, directory: Path, *, seed: int = 1, auto_class: Any = AutoModelForCausalLM, kind: Any = LoraConfig,
    named: str | None = None, **options: Any,
) -> Path:  # fmt: skip
    """Save an adapter of a model, which it calls `named`, or by its path."""
    model = auto_class.from_pretrained(base, dtype="float32", **options.pop("model", {}))
    adapted = get_peft_model(model, kind(**{"target_modules": "all-linear"} | options))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.2)
    adapted.peft_config["default"].base_model_name_or_path = named or str(base)
    adapted.save_pretrained(directory)
    return directory
