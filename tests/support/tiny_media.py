"""Tiny models over images and sound with random weights, made on the spot, and files to try them with."""

import io
import json
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessor,
    GenerationConfig,
    GLPNConfig,
    GLPNForDepthEstimation,
    GLPNImageProcessor,
    ResNetConfig,
    RobertaTokenizer,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2ForSequenceClassification,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from tests.support.tiny_models import byte_level_files

LABELS = ("cat", "dog", "bird", "tree", "river", "house", "road")
#: Width and height of each image of `photos`: of several shapes, some twice.
SHAPES = ((40, 30), (30, 40), (64, 64), (40, 30), (17, 23), (64, 64), (90, 31))
_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def save(model: torch.nn.Module, directory: Path) -> Path:
    with torch.no_grad():  # the usual initialization is so small that all scores come out alike
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    model.eval().save_pretrained(directory)
    return directory


def labeled(labels: tuple[str, ...] = LABELS) -> dict[str, dict[object, object]]:
    return {"id2label": dict(enumerate(labels)), "label2id": {label: number for number, label in enumerate(labels)}}


def image_bytes(width: int, height: int, seed: int, format: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def photos(directory: Path) -> list[Path]:
    """Write images of several shapes and formats; return their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (width, height) in enumerate(SHAPES):
        format, suffix = (("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"))[number % 3]
        paths.append(directory / f"photo-{number}.{suffix}")
        paths[-1].write_bytes(image_bytes(width, height, number, format))
    return paths


def vit(directory: Path) -> Path:
    torch.manual_seed(1)
    config = ViTConfig(image_size=32, patch_size=8, **_SMALL, **labeled())
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(directory)
    return save(ViTForImageClassification(config), directory)


def vit_states(directory: Path) -> Path:
    torch.manual_seed(1)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(directory)
    return save(ViTModel(ViTConfig(image_size=32, patch_size=8, **_SMALL)), directory)


def clip(directory: Path) -> Path:
    vocabulary, merges = byte_level_files(directory)
    CLIPTokenizer(vocab=vocabulary, merges=merges, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
                  pad_token="<pad>", model_max_length=77).save_pretrained(directory)  # fmt: skip
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(directory)
    torch.manual_seed(2)
    config = CLIPConfig(
        text_config={**_SMALL, "vocab_size": len(vocabulary), "max_position_embeddings": 77,
                     "eos_token_id": vocabulary["</s>"], "bos_token_id": vocabulary["<s>"], "pad_token_id": 1},
        vision_config={**_SMALL, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )  # fmt: skip
    return save(CLIPModel(config), directory)


def detr(directory: Path) -> Path:
    torch.manual_seed(3)
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"])
    config = DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, d_model=32,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, num_queries=8, **labeled(),
    )  # fmt: skip
    DetrImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}).save_pretrained(directory)
    return save(DetrForObjectDetection(config), directory)


_LAYERS = {
    "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [16, 32], "patch_sizes": [7, 3],
    "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2], "decoder_hidden_size": 16,
}  # fmt: skip


def segformer(directory: Path) -> Path:
    torch.manual_seed(4)
    SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(directory)
    return save(SegformerForSemanticSegmentation(SegformerConfig(**_LAYERS, **labeled())), directory)


def glpn(directory: Path) -> Path:
    torch.manual_seed(5)
    GLPNImageProcessor(size_divisor=32).save_pretrained(directory)
    return save(GLPNForDepthEstimation(GLPNConfig(**{**_LAYERS, "num_encoder_blocks": 4, "depths": [1] * 4,
        "sr_ratios": [1] * 4, "hidden_sizes": [8, 8, 16, 16], "patch_sizes": [7, 3, 3, 3], "strides": [4, 2, 2, 2],
        "num_attention_heads": [1] * 4, "mlp_ratios": [2] * 4})), directory)  # fmt: skip


def _wav2vec2(**more: object) -> Wav2Vec2Config:
    return Wav2Vec2Config(
        **_SMALL, conv_dim=(16, 16), conv_kernel=(10, 8), conv_stride=(20, 16), num_feat_extract_layers=2,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, **more,
    )  # fmt: skip


def heard(directory: Path) -> Path:
    torch.manual_seed(6)
    Wav2Vec2FeatureExtractor().save_pretrained(directory)
    return save(Wav2Vec2ForSequenceClassification(_wav2vec2(classifier_proj_size=16, **labeled())), directory)


def spoken(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz"]
    (directory / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    Wav2Vec2CTCTokenizer(str(directory / "vocab.json")).save_pretrained(directory)
    Wav2Vec2FeatureExtractor().save_pretrained(directory)
    torch.manual_seed(7)
    return save(Wav2Vec2ForCTC(_wav2vec2(vocab_size=len(letters), pad_token_id=0)), directory)


def samples(seconds: float, seed: int, rate: int = 16_000) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.2, int(seconds * rate)).astype(np.float32)


def sound_bytes(sound: np.ndarray, rate: int = 16_000, format: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound, rate, format=format, **({"subtype": "FLOAT"} if format == "WAV" else {}))
    return file.getvalue()


def whisper(directory: Path) -> Path:
    vocabulary, merges = byte_level_files(directory)
    marks = ["<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>"]
    marks += [f"<|{step * 0.02:.2f}|>" for step in range(101)]
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.save_pretrained(directory)
    ids = {mark: tokenizer.convert_tokens_to_ids(mark) for mark in (*marks, "<|endoftext|>")}
    WhisperFeatureExtractor(feature_size=8, chunk_length=2, n_fft=400).save_pretrained(directory)
    torch.manual_seed(8)
    end = ids["<|endoftext|>"]
    config = WhisperConfig(
        vocab_size=len(tokenizer), num_mel_bins=8, d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        max_source_positions=100, max_target_positions=64, pad_token_id=end, bos_token_id=end, eos_token_id=end,
        decoder_start_token_id=ids["<|startoftranscript|>"],
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=ids["<|startoftranscript|>"], eos_token_id=end, pad_token_id=end, bos_token_id=end,
        no_timestamps_token_id=ids["<|notimestamps|>"], is_multilingual=True, lang_to_id={"<|en|>": ids["<|en|>"]},
        task_to_id={"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]}, max_new_tokens=12,
        suppress_tokens=[], begin_suppress_tokens=[],
    )  # fmt: skip
    return save(model, directory)


def clap(directory: Path) -> Path:
    vocabulary, merges = byte_level_files(directory)
    RobertaTokenizer(vocab=vocabulary, merges=merges).save_pretrained(directory)
    ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=16_000,
        max_length_s=1,
        fft_window_size=256,
        hop_length=125,
        frequency_max=8000,
        padding="repeatpad",
        truncation="rand_trunc",
    ).save_pretrained(directory)
    torch.manual_seed(9)
    config = ClapConfig(
        text_config={**_SMALL, "vocab_size": len(vocabulary) + 8, "max_position_embeddings": 66, "projection_dim": 16},
        audio_config={"spec_size": 64, "num_mel_bins": 16, "window_size": 4, "patch_size": 2, "patch_stride": (2, 2),
                      "hidden_size": 32, "patch_embeds_hidden_size": 16, "depths": [1, 1], "num_hidden_layers": 2,
                      "num_attention_heads": [2, 2], "projection_dim": 16},
        projection_dim=16,
    )  # fmt: skip
    return save(ClapModel(config), directory)
