"""Tiny models over images and texts together with random weights, made on the spot."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BlipConfig,
    BlipForQuestionAnswering,
    BlipImageProcessor,
    CLIPImageProcessor,
    CLIPTokenizer,
    LayoutLMConfig,
    LayoutLMForQuestionAnswering,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessor,
    PreTrainedTokenizerFast,
    SamConfig,
    SamImageProcessor,
    SamModel,
    ViltConfig,
    ViltForQuestionAnswering,
    ViltImageProcessor,
)

from tests.support.tiny_media import labeled, save
from tests.support.tiny_models import byte_level_files, wordpiece
from tests.support.tiny_tokenizers import byte_level

_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_VISION = {**_SMALL, "image_size": 32, "patch_size": 8}
#: A chat template as LLaVA has it, for messages of texts and of parts.
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}<{{ part['type'] }}>{% endif %}{% endfor %}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def with_tokens(*tokens: str) -> PreTrainedTokenizerFast:
    tokenizer = byte_level("<s> $A", limit=512)
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    return tokenizer


def llava(directory: Path, template: str | None = TEMPLATE) -> Path:
    tokenizer = with_tokens("<image>")
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(directory)  # fmt: skip
    torch.manual_seed(11)
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **_VISION, "projection_dim": 16},
        text_config=LlamaConfig(**_SMALL, vocab_size=len(tokenizer), max_position_embeddings=512,
                                num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), image_seq_length=16,
    )  # fmt: skip
    return save(LlavaForConditionalGeneration(config), directory)


def vilt(directory: Path) -> Path:
    tokenizer = wordpiece(directory)
    ViltImageProcessor(size={"shortest_edge": 32}).save_pretrained(directory)
    torch.manual_seed(12)
    config = ViltConfig(**_VISION, vocab_size=len(tokenizer), max_position_embeddings=64, **labeled())
    return save(ViltForQuestionAnswering(config), directory)


def blip(directory: Path) -> Path:
    tokenizer = wordpiece(directory)
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    settings["model_input_names"] = ["input_ids", "attention_mask"]
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(directory)
    torch.manual_seed(13)
    ids: dict[str, Any] = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id,
                           "sep_token_id": tokenizer.sep_token_id, "pad_token_id": tokenizer.pad_token_id}  # fmt: skip
    config = BlipConfig(
        text_config={**_SMALL, "vocab_size": len(tokenizer), "encoder_hidden_size": 32, "projection_dim": 16,
                     "max_position_embeddings": 64, **ids},
        vision_config={**_VISION, "projection_dim": 16}, projection_dim=16, image_text_hidden_size=16,
    )  # fmt: skip
    return save(BlipForQuestionAnswering(config), directory)


def layoutlm(directory: Path) -> Path:
    tokenizer = wordpiece(directory)
    torch.manual_seed(14)
    config = LayoutLMConfig(**_SMALL, vocab_size=len(tokenizer), max_position_embeddings=64, pad_token_id=0)
    return save(LayoutLMForQuestionAnswering(config), directory)


def owlvit(directory: Path) -> Path:
    vocabulary, merges = byte_level_files(directory)
    vocabulary |= {"<pad>": vocabulary["<s>"], "<s>": vocabulary["<pad>"]}  # the model takes 0 for no text
    CLIPTokenizer(vocab=vocabulary, merges=merges, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
                  pad_token="<pad>", model_max_length=16).save_pretrained(directory)  # fmt: skip
    OwlViTImageProcessor(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        directory
    )
    torch.manual_seed(15)
    config = OwlViTConfig(
        text_config={**_SMALL, "vocab_size": len(vocabulary), "max_position_embeddings": 16, "pad_token_id": 0,
                     "eos_token_id": vocabulary["</s>"], "bos_token_id": vocabulary["<s>"]},
        vision_config=_VISION, projection_dim=32,
    )  # fmt: skip
    return save(OwlViTForObjectDetection(config), directory)


def sam(directory: Path) -> Path:
    SamImageProcessor(
        size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}, mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    ).save_pretrained(directory)  # fmt: skip
    torch.manual_seed(16)
    config = SamConfig(
        vision_config={**_SMALL, "image_size": 64, "patch_size": 16, "output_channels": 16, "num_pos_feats": 8,
                       "global_attn_indexes": [0], "mlp_dim": 64, "window_size": 2},
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4},
        mask_decoder_config={"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16,
                             "attention_downsample_rate": 2},
    )  # fmt: skip
    return save(SamModel(config), directory)
