"""The architectures that the installed transformers knows, made tiny: their own configurations, shrunk by names.

Nothing is listed by hand but what the names do not tell. What cannot be made so raises, with the reason.
"""

import inspect
import re
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from tests.support.tiny_models import WORDS

SPECIALS = {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
IDS = {"pad": 0, "bos": 1, "eos": 2, "decoder_start": 1, "sep": 2, "cls": 1, "mask": 4}
VOCABULARY = list(dict.fromkeys([*SPECIALS.values(), *WORDS, *string.ascii_letters, *string.punctuation, "Ġ"]))
POSITIONS = 128
#: Numbers of a configuration by what their names say, the first that fits.
_SIZES: tuple[tuple[str, int], ...] = (
    (r"vocab_size|vocab$|n_token$", len(VOCABULARY) + 4),
    (r"^max_position_embeddings$|^n_positions$|^n_ctx$|^max_seq_len$|^seq_length$|context_length$", POSITIONS),
    (r"max_(source|target)_positions$", POSITIONS),
    (r"^qk_head_dim$", 16),
    (r"rotary_dim$", 4),
    (r"head_dim$|d_head$|qk_nope|qk_rope|v_head|d_kv$|head_size$|kv_channels$", 8),
    (r"lora_rank$", 16),
    (r"num_key_value_heads$|kv_heads$|multi_query_group_num$|num_groups$|n_groups$|^num_key_value", 4),
    (r"(num|n)_.*heads?$|.*attention_heads$|^n_head$|^num_heads$|linear_num", 4),
    (r"^index_topk$", 64),
    (r"experts_per_tok|top_k$|topk$|moe_k$|n_shared_experts|num_shared|first_k_dense", 1),
    (r"topk_group$|n_group$", 1),
    (r"num_.*experts$|n_routed_experts|num_local_experts|n_experts", 4),
    (r"layers$|^n_layers?$|_layers$|num_blocks$|num_hidden_groups$", 2),
    (r"intermediate_size$|ffn|d_ff$|n_inner$|feed_forward|ffn_hidden|inner_dim$|mlp_dim", 64),
    (r"hidden_size$|d_model$|n_embd$|^dim$|embed_dim$|embedding_size$|hidden_dim$|dim_model$", 32),
    (r"rescale_dim|d_embed$|emb_dim$|bottleneck_size$", 32),
    (r"state_size$|d_state$|ssm_state", 8),
)
#: What the names do not tell, by the kind of model: parts that must fit together, and layers of each kind.
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_expand": 2, "mamba_n_groups": 1, "mamba_d_ssm": 64}
_MORE: Mapping[str, dict[str, Any]] = {
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "deepseek_v2": {"num_experts_per_tok": 1},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 1},
    "esm": {"vocab_size": len(VOCABULARY) + 4},
    "falcon_h1": _MAMBA,
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention"], "num_hidden_layers": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "glm4v_moe_text": {"rope_parameters": {**_MROPE, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}},
    "glm4v_text": {"rope_parameters": _MROPE},
    "glm_image_text": {"rope_parameters": _MROPE},
    "glm_ocr_text": {"rope_parameters": _MROPE},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "hunyuan_vl_text": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lilt": {"hidden_size": 48},
    "mamba2": {"num_heads": 8},
    "mimo_v2_flash": {"head_dim": 12, "swa_head_dim": 12},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 4},
    "qwen2_5_vl_text": {"rope_parameters": _MROPE},
    "qwen2_vl_text": {"rope_parameters": _MROPE},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 16], "attn_layers": ["local", "lsh"]},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 3},
}
#: What is not tried, by the reason; the sweep fails where a name is missing here, and where one is here for nothing.
_NOT: Mapping[str, str] = {
    "its usual configuration, or its names, make no model that runs": (
        "BailingHybridModel BailingHybridForCausalLM BltModel BltForCausalLM CohereCompassForCausalLM "
        "CohereCompassTextForSequenceClassification DbrxModel DbrxForCausalLM DiffusionGemmaModel "
        "Gemma4AssistantForCausalLM Gemma4UnifiedAssistantForCausalLM HunYuanVLTextModel KyutaiSpeechToTextModel "
        "LongcatFlashModel LongcatFlashForCausalLM MiMoV2FlashModel MiMoV2FlashForCausalLM Mistral4Model "
        "Mistral4ForSequenceClassification Qwen4ExpTextModel Qwen4ExpForCausalLM xLSTMForCausalLM ZambaModel "
        "ZambaForCausalLM ZambaForSequenceClassification Zamba2Model Zamba2ForCausalLM Zamba2ForSequenceClassification"
    ),
    "its size does not follow from its configuration": (
        "Dots3NoteTextModel Dots3NoteForCausalLM PerceiverForSequenceClassification VitsModel"
    ),
    "its forward pass wants decoder inputs beside the text": (
        "BlenderbotModel BlenderbotSmallModel M2M100Model MarianModel NllbMoeModel PegasusModel "
        "PegasusXModel ProphetNetModel T5GemmaModel"
    ),
    "it gives one vector and no hidden states": "DPRQuestionEncoder",
    "the automatic classes do not load its own configuration": (
        "Emu3ForCausalLM EvollaModel MllamaForCausalLM MusicgenModel MusicgenForCausalLM MusicgenMelodyModel "
        "MusicgenMelodyForCausalLM"
    ),
}
UNTRIED: Mapping[str, str] = {name: why for why, names in _NOT.items() for name in names.split()}
#: Arguments of models that read more than text.
_MEDIA = r"pixel|bbox|visual|image|audio|input_features|input_values|spectrogram|mel|speech"
#: What makes a model larger than `MAX_PARAMETERS` is not tiny.
MAX_PARAMETERS = 6_000_000


class NotTiny(Exception):
    """An architecture that the names of its configuration do not make small."""


def tokenizer(*, generates: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words; one for encoders puts special tokens around a text."""
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if not generates:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    names = {f"{name}_token": word for name, word in SPECIALS.items()}
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=POSITIONS // 2, cls_token="<s>", sep_token="</s>", **names
    )
    made.model_input_names = ["input_ids", "attention_mask"]
    return made


def reads_text(model_class: type[nn.Module]) -> bool:
    """Whether token ids are what a model takes first, and all that it must be given."""
    try:
        named = inspect.signature(model_class.forward).parameters
    except ImportError:  # it stands for a class that needs another library
        return False
    return "input_ids" in named and not any(re.search(_MEDIA, name) for name in named)


def architectures(mapping: Mapping[type[PreTrainedConfig], Any]) -> Iterator[tuple[type[PreTrainedConfig], Any]]:
    """Yield each configuration of an auto mapping with its model, those that read text."""
    for config_class in mapping:
        try:
            found = mapping[config_class]
        except ValueError:  # named in the mapping and nowhere else
            continue
        for model_class in found if isinstance(found, tuple | list) else (found,):
            if reads_text(model_class):
                yield config_class, model_class
                break


def tiny_config(config_class: type[PreTrainedConfig], **more: Any) -> PreTrainedConfig:
    """Return a configuration of small numbers, those of its parts included."""
    return config_class(**{**_small(config_class()), **more})


def _small(usual: PreTrainedConfig) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in usual.to_dict().items():
        if name in usual.sub_configs:
            part = getattr(usual, name)
            if isinstance(part, PreTrainedConfig):
                values[name] = type(part)(**_small(part))
        elif name.endswith("_token_id"):
            values[name] = IDS.get(name.removesuffix("_token_id"), value if value is None else 3)
        elif isinstance(value, int) and not isinstance(value, bool):
            size = next((size for pattern, size in _SIZES if re.search(pattern, name)), None)
            if size is not None:
                values[name] = size if value else value
    if isinstance(usual.to_dict().get("layer_types"), list):
        values["layer_types"] = sorted(set(usual.to_dict()["layer_types"]))
        values["num_hidden_layers"] = len(values["layer_types"])
    rope = usual.to_dict().get("rope_parameters") or {}
    if "mrope_section" in rope:  # three parts of half a head, or of the part of it that turns
        half = int(4 * rope.get("partial_rotary_factor", 1))
        values["rope_parameters"] = rope | {"mrope_section": [half - half // 2, half // 2, 0]}
    if usual.is_encoder_decoder:
        values["decoder_start_token_id"] = IDS["decoder_start"]
    return values | _MORE.get(usual.model_type, {})


def tiny_model(config_class: type[PreTrainedConfig], model_class: Any, directory: Path, **more: Any) -> Path:
    """Save a tiny model with random weights and its tokenizer.

    Raises:
        NotTiny: it is larger than `MAX_PARAMETERS` parameters.
        Exception: whatever the architecture raises over such a configuration.
    """
    own = getattr(model_class, "config_class", None) or config_class
    causal = model_class.__name__.endswith(("ForCausalLM", "LMHeadModel", "ModelWithLMHead"))
    config = tiny_config(own, **({"is_decoder": True} if causal and own.model_type == "reformer" else {}), **more)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in model_class(config).parameters())
    if size > MAX_PARAMETERS:
        raise NotTiny(f"{size:,} parameters")
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():  # the usual initialization is so small that all outputs come out alike
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    model.save_pretrained(directory)
    tokenizer(generates=causal).save_pretrained(directory)
    return directory
