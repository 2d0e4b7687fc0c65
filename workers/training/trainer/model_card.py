"""What is to be known of a fine-tuned model: `model.json`, `metrics.json`, and a card for people."""

import json
import math
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from common.distribution import installed_version
from common.json_codec import to_jsonable
from common.models.registry import METADATA_FILE
from common.records import Json
from common.training.options import TrainingOptions
from workers.training.run_config import TrainingRunConfig
from workers.training.trainer.data import Examples
from workers.training.trainer.evaluation import Evaluation
from workers.training.trainer.metrics import eval_metrics

#: Points of the loss curve that are kept.
_POINTS = 500
#: The part of a result that quotes examples: it stays with the job, since a model may be passed on to others.
_TEXTS = "worst"
_LIBRARIES = ("transformers", "torch", "accelerate", "datasets", "peft", "scikit-learn", "hugqueue")


def summarize_run(
    run_config: TrainingRunConfig,
    trainer: Any,
    examples: Examples,
    evaluation: Evaluation,
    notes: Sequence[str],
) -> dict[str, Json]:
    """Return what came of a run, in terms of JSON."""
    job, state = run_config.job, trainer.state
    losses = [entry for entry in state.log_history if "loss" in entry]
    found = {
        "model": f"job:{job.id}",
        "task": job.task,
        "base_model": run_config.model_info["model"],
        "base_commit": run_config.model_info["commit"],
        "metrics": {name.removeprefix("eval_"): value for name, value in eval_metrics(evaluation.metrics).items()},
        "best_metric": state.best_metric,
        "best_step": state.best_global_step,
        "train_loss": _mean_loss(losses),
        "steps": state.global_step,
        "epochs": round(state.epoch or 0.0, 3),
        "examples": {"train": len(examples.train), "eval": len(examples.evaluation)},
        "labels": {"kind": examples.labels.kind, "names": list(examples.labels.names)},
        "inputs": list(job.inputs),
        "notes": list(notes),
        "curve": _thinned([[e["step"], e["loss"], e.get("learning_rate")] for e in losses]),
        "evaluations": [_evaluation(entry) for entry in state.log_history if "eval_loss" in entry],
        "confusion": evaluation.confusion_matrix,
        "classes": evaluation.classes,
        _TEXTS: evaluation.worst,
        "options": _options(run_config.training),
        "arguments": _arguments(trainer.args),
        "batch": [run_config.batch_size, run_config.gradient_accumulation, run_config.processes],
        "device": _device(run_config),
        "versions": _versions(),
        "finished_at": time.time(),
    }
    result: dict[str, Json] = to_jsonable(found)
    return result


def write_model_card(run_config: TrainingRunConfig, result: Mapping[str, Json]) -> None:
    """Write the three files, without texts of examples; `model.json`, which makes the model whole, last."""
    directory = run_config.model_directory
    (directory / "metrics.json").write_text(json.dumps(result["metrics"], indent=2) + "\n")
    (directory / "README.md").write_text(_card(result))
    result = {name: value for name, value in result.items() if name != _TEXTS}
    (directory / METADATA_FILE).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def _evaluation(entry: Mapping[str, float]) -> dict[str, Json]:
    named = {name.removeprefix("eval_"): value for name, value in eval_metrics(entry).items()}
    return {"step": entry["step"], "epoch": entry["epoch"], **named}


def _mean_loss(losses: Sequence[Mapping[str, float]]) -> float | None:
    return math.fsum(entry["loss"] for entry in losses) / len(losses) if losses else None


def _thinned(points: list[list[Json]]) -> list[list[Json]]:
    step = -(-len(points) // _POINTS) or 1
    return points[::step] + (points[-1:] if (len(points) - 1) % step else [])


def _options(training: TrainingOptions) -> dict[str, Json]:
    """Return the options in force; those of LoRA where it is used."""
    shown = {name: value for name, value in training.encode().items() if name not in ("labels", "arguments")}
    if not training.lora:
        shown = {name: value for name, value in shown.items() if not name.startswith("lora_")}
    return {**shown, "learning_rate": training.rate}


def _arguments(arguments: Any) -> dict[str, Json]:
    """Return the `TrainingArguments` that differ from transformers' own defaults, without places of this machine."""
    plain_default = type(arguments)(output_dir=arguments.output_dir, use_cpu=arguments.use_cpu).to_dict()
    ours = arguments.to_dict()
    hidden = {"output_dir", "report_to", "disable_tqdm", "logging_dir", "local_rank"}
    return {
        name: value if isinstance(value, str | int | float | bool | type(None)) else str(value)
        for name, value in ours.items()
        if name not in hidden and value != plain_default.get(name)
    }


def _device(run_config: TrainingRunConfig) -> str:
    name = torch.cuda.get_device_name(0) if run_config.cuda else platform.processor() or platform.machine()
    return f"{name} × {run_config.processes}" if run_config.processes > 1 else name


def _versions() -> dict[str, str]:
    found = {name: installed_version(name) for name in _LIBRARIES}
    return {"python": platform.python_version()} | {name: number for name, number in found.items() if number}


def _card(result: Mapping[str, Json]) -> str:
    """Return the model card: from what, on what, with what result."""
    metrics = "\n".join(f"| {name} | {value:.4g} |" for name, value in result["metrics"].items() if value is not None)
    given = {**result["options"], **result["arguments"]}
    options = "\n".join(f"* {name}: {value}" for name, value in given.items() if value is not None)
    kept = f"; the model is that of step {best:,}" if (best := result["best_step"]) else ""
    labels = ", ".join(result["labels"]["names"]) or "none"
    notes = "".join(f"\n* {text}" for text in result["notes"])
    base = Path(result["base_model"]).name if result["base_model"].startswith("/") else result["base_model"]
    tables = f"| metric | value |\n|---|---|\n{metrics}" if metrics else "There was no evaluation set."
    return f"""---
base_model: {json.dumps(base)}
pipeline_tag: {result["task"]}
library_name: transformers
tags: [hugqueue]
---
# {base}, fine-tuned for {result["task"]}

Made by hugqueue ({result["model"]}) from `{base}`{f" at commit {c}" if (c := result["base_commit"]) else ""}.

* examples: {result["examples"]["train"]:,} to learn from, {result["examples"]["eval"]:,} to evaluate with
* from: {", ".join(result["inputs"]) or "unknown"}
* labels: {labels}
* steps: {result["steps"]:,} ({result["epochs"]:g} epochs), on {result["device"]}{kept}{notes}

## Evaluation

{tables}

## Arguments

{options}

## Versions

{", ".join(f"{name} {number}" for name, number in result["versions"].items())}
"""
