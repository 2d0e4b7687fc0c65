"""LoRA: every weight that the base model lacks is trained and saved, whatever the head is called."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.numpy import load_file
from transformers.models.auto import modeling_auto

from common.errors import ModelError
from common.training.options import TrainingOptions
from tests.support.finetune_runs import TUTORIAL, make_run_config, train_here
from tests.support.tiny_models import VOCABULARY, wordpiece
from workers.training.trainer.base_model import add_lora

REVIEWS = [{"text": text, "label": label} for text, label in TUTORIAL * 4]
LAYERS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers",
    "num_encoder_layers", "num_decoder_layers",
)  # fmt: skip
SIZES = {"vocab_size": len(VOCABULARY), "pad_token_id": 0}
BART = transformers.BartConfig(
    **SIZES, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
    encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64, bos_token_id=2, eos_token_id=3,
    decoder_start_token_id=3,
)  # fmt: skip
DEBERTA = transformers.DebertaV2Config(
    **SIZES, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
    max_position_embeddings=64, pooler_hidden_size=32,
)  # fmt: skip
XLNET = transformers.XLNetConfig(**SIZES, d_model=32, n_layer=1, n_head=2, d_inner=64)
HEADS: dict[str, tuple[Any, set[str]]] = {
    "BART": (BART, {"classification_head.dense.weight", "classification_head.out_proj.weight"}),
    "DeBERTa": (DEBERTA, {"pooler.dense.weight", "classifier.weight"}),
    "XLNet": (XLNET, {"sequence_summary.summary.weight", "logits_proj.weight"}),
}


@pytest.mark.parametrize("family", HEADS)
def test_every_new_weight_is_trained_and_saved(family: str, tmp_path: Path) -> None:
    config, new = HEADS[family]
    torch.manual_seed(1)
    wordpiece(tmp_path / "base")
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "base")
    trained = []
    for rate in (1e-9, 1e-2):
        run_config = make_run_config(
            tmp_path / str(rate), "text-classification", tmp_path / "base", REVIEWS, epochs=3, batch_size=8, lora=True,
            learning_rate=rate,
        )  # fmt: skip
        train_here(run_config)
        trained.append(load_file(run_config.model_dir / "model.safetensors"))
    before, after = trained
    assert before.keys() == after.keys() and new <= after.keys()
    changed = {name for name, value in after.items() if np.abs(value - before[name]).max() > 1e-5}
    assert new <= changed
    assert changed - new  # and the body's layers, by their additions


def test_a_run_resumed_from_a_checkpoint_has_the_same_head(tmp_path: Path) -> None:
    wordpiece(tmp_path / "base")
    transformers.AutoModel.from_config(DEBERTA).save_pretrained(tmp_path / "base")
    options = {"epochs": 3, "batch_size": 8, "lora": True, "learning_rate": 1e-2}
    run_config = make_run_config(
        tmp_path / "1-1-a", "text-classification", tmp_path / "base", REVIEWS, REVIEWS, **options
    )
    train_here(run_config)
    again = make_run_config(tmp_path / "1-2-b", "text-classification", tmp_path / "base", REVIEWS, REVIEWS, **options)
    result = train_here(replace(again, checkpoint=f"{run_config.work_dir}/checkpoint-2"))
    assert result["steps"] == 6
    expected, found = (load_file(one.model_dir / "model.safetensors") for one in (run_config, again))
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name


def heads() -> Iterator[Any]:
    for mapping in (
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    ):  # fmt: skip
        yield from mapping.items()


def without_memory(config_class: Any, model_class: Any) -> Any | None:
    """A model of that class with two layers and no weights; None where its default configuration makes none."""
    try:
        config = config_class()
        for name in LAYERS:
            if isinstance(getattr(config, name, None), int):
                setattr(config, name, 2)
        with torch.device("meta"):
            return model_class(config)
    except (TypeError, KeyError, ValueError, ImportError, AttributeError, RuntimeError):
        return None


@pytest.mark.slow
def test_every_head_of_transformers_is_trained_beside_lora() -> None:
    tried, refused = 0, {}  # experts take additions without dropout alone
    for config_class, model_class in heads():
        model = without_memory(config_class, model_class)
        if model is None:
            continue
        body = f"{model.base_model_prefix}."
        new = {name for name, _ in model.named_parameters() if not name.startswith(body) or "pooler" in name}
        kept = {name: (p.shape, p.requires_grad) for name, p in model.named_parameters()}
        try:
            adapted = add_lora(model, TrainingOptions(lora=True, lora_dropout=0.0), new)
        except ModelError as error:
            refused[model_class.__name__] = str(error)
            continue
        trainable = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
        whole = {name.replace("modules_to_save.default.", "") for name in trainable if "modules_to_save" in name}
        assert whole == {f"base_model.model.{name}" for name in new}, model_class
        saved = get_peft_model_state_dict(adapted)
        assert {f"base_model.model.{name}" for name in new} <= saved.keys(), model_class
        assert not set_peft_model_state_dict(adapted, saved).unexpected_keys, model_class
        assert all("lora_" in name or "modules_to_save" in name for name in trainable), model_class
        merged = adapted.unload()
        assert {name: p.shape for name, p in merged.named_parameters()} == {n: s for n, (s, _) in kept.items()}
        tried += 1
    assert tried > 180
    others = {name for name in refused if not name.startswith(("IBert", "SqueezeBert"))}  # have no linear layers
    assert not others, refused
