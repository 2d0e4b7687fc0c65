"""The one function of torchvision that a pipeline calls, where none is installed that fits torch."""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from transformers.utils.import_utils import BACKENDS_MAPPING


def provide_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `torchvision.ops.boxes.batched_nms` importable; transformers still finds no torchvision."""
    if importlib.util.find_spec("torchvision") is not None:
        return
    monkeypatch.setitem(BACKENDS_MAPPING, "torchvision", (lambda: True, ""))
    for name in ("torchvision", "torchvision.ops", "torchvision.ops.boxes"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys.modules["torchvision.ops.boxes"], "batched_nms", batched_nms, raising=False)


def batched_nms(boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Return which boxes remain, the best first: those that overlap no better one by more than the threshold."""
    kept: list[int] = []
    areas = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
    for number in scores.argsort(descending=True).tolist():
        corners = torch.maximum(boxes[number, :2], boxes[kept, :2]), torch.minimum(boxes[number, 2:], boxes[kept, 2:])
        shared = (corners[1] - corners[0]).clamp(min=0).prod(dim=1)
        if not (shared / (areas[number] + areas[kept] - shared) > iou_threshold).any():
            kept.append(number)
    return torch.tensor(kept, dtype=torch.long)
