"""Tiny models over images with random weights, made on the spot, and images to try them with."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

LABELS = ("cat", "dog", "bird", "tree", "river", "house", "road")
#: Width and height of each image of `photos`: of several shapes, some twice.
SHAPES = ((40, 30), (30, 40), (64, 64), (40, 30), (17, 23), (64, 64), (90, 31))
_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def save(model: torch.nn.Module, directory: Path) -> Path:
    with torch.no_grad():  # the usual initialisation is so small that all scores come out alike
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    model.eval().save_pretrained(directory)
    return directory


def labelled(labels: tuple[str, ...] = LABELS) -> dict[str, dict[object, object]]:
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
    config = ViTConfig(image_size=32, patch_size=8, **_SMALL, **labelled())
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(directory)
    return save(ViTForImageClassification(config), directory)
