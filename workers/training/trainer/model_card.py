"""Model card of a fine-tuned model: `model.json` and `metrics.json` for programs, `README.md` for people."""

import json
import math
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from common.distribution import installed_version
from common.json_codec import to_jsonable
from common.models.registry import METADATA_FILE
from common.records import Json
from common.training.kinds import UNLABELED
from common.training.losses import LOSSES, loss_of
from common.training.options import TrainingOptions
from workers.training.run_config import TrainingRunConfig
from workers.training.trainer.data import Examples
from workers.training.trainer.evaluation import Evaluation
from workers.training.trainer.metrics import eval_metrics

#: Points of the loss curve that are kept.
_MAX_POINTS = 500
#: The part of a result that quotes examples: it stays with the job, for a model may be given to others.
_QUOTES = "worst"
_LIBRARIES = (
    "transformers", "sentence-transformers", "trl", "torch", "accelerate", "datasets", "peft", "scikit-learn",
    "hugqueue",
)  # fmt: skip
#: What the Hub calls a task, and the library that its models are for; by default the task itself, and transformers.
_ON_HUB = {
    "embedding": ("sentence-similarity", "sentence-transformers"),
    "rerank": ("text-ranking", "sentence-transformers"),
}
#: `TrainingArguments` that depend on this machine.
_LOCAL_ARGUMENTS = {"output_dir", "report_to", "run_name", "project", "disable_tqdm", "logging_dir", "local_rank"}


def summarize_run(
    config: TrainingRunConfig, trainer: Any, examples: Examples, evaluation: Evaluation, notes: Sequence[str]
) -> dict[str, Json]:
    """Return the results of a run as JSON values."""
    job, state = config.job, trainer.state
    losses = [entry for entry in state.log_history if "loss" in entry]
    summary = {
        "model": f"job:{job.id}",
        "task": job.task,
        "base_model": config.model_info["model"],
        "base_commit": config.model_info["commit"],
        "metrics": _named_metrics(evaluation.metrics),
        "best_metric": state.best_metric,
        "best_step": state.best_global_step,
        "train_loss": math.fsum(entry["loss"] for entry in losses) / len(losses) if losses else None,
        "steps": state.global_step,
        "epochs": round(state.epoch or 0.0, 3),
        "examples": {"train": len(examples.train), "eval": len(examples.eval)},
        "labels": {"kind": examples.labels.kind, "names": list(examples.labels.names)},
        "inputs": list(job.inputs),
        "notes": list(notes),
        "curve": _thin_out([[e["step"], e["loss"], e.get("learning_rate")] for e in losses]),
        "evaluations": [
            {"step": entry["step"], "epoch": entry["epoch"], **_named_metrics(entry)}
            for entry in state.log_history
            if "eval_loss" in entry
        ],
        "confusion": evaluation.confusion_matrix,
        "classes": evaluation.classes,
        _QUOTES: evaluation.worst,
        "options": _options(config.options, examples.labels.kind) | {"learning_rate": trainer.args.learning_rate},
        "arguments": _arguments(trainer.args),
        "batch": [config.batch_size, config.gradient_accumulation, config.processes],
        "device": _device(config),
        "versions": _versions(),
        "finished_at": time.time(),
    }
    result: dict[str, Json] = to_jsonable(summary)
    return result


def write_model_card(directory: Path, result: Mapping[str, Json]) -> None:
    """Write the three files, without quotes of examples; `model.json`, which marks the model complete, last."""
    (directory / "metrics.json").write_text(json.dumps(result["metrics"], indent=2) + "\n")
    (directory / "README.md").write_text(_card(result))
    metadata = {name: value for name, value in result.items() if name != _QUOTES}
    (directory / METADATA_FILE).write_text(json.dumps(metadata, indent=1, ensure_ascii=False) + "\n")


def _named_metrics(logs: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix("eval_"): value for name, value in eval_metrics(logs).items()}


def _thin_out(points: list[list[Json]]) -> list[list[Json]]:
    step = -(-len(points) // _MAX_POINTS) or 1
    return points[::step] + (points[-1:] if (len(points) - 1) % step else [])


def _options(options: TrainingOptions, kind: str) -> dict[str, Json]:
    """Return the options in effect; those of LoRA where it is used, and the loss where there are several."""
    hidden = (
        ("labels", "arguments")
        if options.lora
        else ("labels", "arguments", "lora_r", "lora_alpha", "lora_dropout", "merge")
    )
    shown = {name: value for name, value in options.encode().items() if name not in hidden}
    return {**shown, "loss": loss_of(kind, options) if kind in LOSSES else None}


def _arguments(arguments: Any) -> dict[str, Json]:
    """Return the `TrainingArguments` that differ from transformers' defaults."""
    defaults = type(arguments)(output_dir=arguments.output_dir, use_cpu=arguments.use_cpu).to_dict()
    return {
        name: value if isinstance(value, str | int | float | bool | type(None)) else str(value)
        for name, value in arguments.to_dict().items()
        if name not in _LOCAL_ARGUMENTS and value != defaults.get(name)
    }


def _device(config: TrainingRunConfig) -> str:
    name = torch.cuda.get_device_name(0) if config.cuda else platform.processor() or platform.machine()
    return f"{name} × {config.processes}" if config.processes > 1 else name


def _versions() -> dict[str, str]:
    found = {name: installed_version(name) for name in _LIBRARIES}
    return {"python": platform.python_version()} | {name: number for name, number in found.items() if number}


def _card(result: Mapping[str, Json]) -> str:
    """Return the model card as Markdown, with the metadata that the Hub reads."""
    name, commit, best = result["base_model"], result["base_commit"], result["best_step"]
    base = Path(name).name if name.startswith("/") else name
    rows = "".join(f"\n| {name} | {value:.4g} |" for name, value in result["metrics"].items() if value is not None)
    table = f"| metric | value |\n|---|---|{rows}"
    arguments = {**result["options"], **result["arguments"]}
    names, kind = result["labels"]["names"], result["labels"]["kind"]
    facts = [
        f"examples: {result['examples']['train']:,} to train on, {result['examples']['eval']:,} to evaluate on",
        f"from: {', '.join(result['inputs']) or 'unknown'}",
        f"labels: {', '.join(names)}" if names else f"learned: {UNLABELED.get(kind, kind)}",
        f"steps: {result['steps']:,}, epochs: {result['epochs']:g}, on {result['device']}"
        + (f"; the model is that of step {best:,}" if best else ""),
        *result["notes"],
    ]
    tag, library = _ON_HUB.get(result["task"], (result["task"], "transformers"))
    return f"""---
base_model: {json.dumps(base)}
pipeline_tag: {tag}
library_name: {library if result["options"].get("merge", True) else "peft"}
tags: [hugqueue]
---
# {base}, fine-tuned for {result["task"]}

Made by hugqueue ({result["model"]}) from `{base}`{f" at commit {commit}" if commit else ""}.

{_bullets(facts)}

## Evaluation

{table if rows else "There was no evaluation set."}

## Arguments

{_bullets(f"{name}: {value}" for name, value in arguments.items() if value is not None)}

## Versions

{", ".join(f"{name} {number}" for name, number in result["versions"].items())}
"""


def _bullets(items: Iterable[str]) -> str:
    return "\n".join(f"* {item}" for item in items)
