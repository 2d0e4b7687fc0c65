"""Fine-tuning: the time of an epoch compared with a tutorial's settings, with the same data, model and device.

    python -m benchmarks.finetune [--examples 256] [--mix mixed] [--rounds 3] [--model DIRECTORY]

The tutorial pads every text to the model's full length, computes in float32 and keeps the order of the texts
(https://huggingface.co/docs/transformers/training). `finetune` pads to the longest text of a batch and groups texts
of similar length. Both train the same number of steps of the same size, without evaluation and checkpoints.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from benchmarks.machine import described
from benchmarks.models import minilm
from benchmarks.workloads import MIXES, texts
from common.jobs import JobSpec, new_job_id
from common.training.labels import Example, infer_labels
from common.training.options import TrainingOptions
from workers.training.run_config import TrainingRunConfig
from workers.training.trainer.arguments import build_training_arguments
from workers.training.trainer.data import to_dataset
from workers.training.trainer.job_trainer import LABELED
from workers.training.trainer.recipes import RECIPES

TASK = "text-classification"
BATCH = 16


def labeled(mix: str, count: int) -> list[Example]:
    """Return texts of a mix (`benchmarks.workloads`) with alternating labels, which do not affect the speed."""
    return [{"text": text, "label": number % 2} for number, text in enumerate(texts(mix, count))]


def tutorial_seconds(model: Path, examples: Sequence[Example], steps: int) -> float:
    """Return the seconds of training with the tutorial's settings."""
    set_seed(42)
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2, dtype=torch.float32)
    data = Dataset.from_list([dict(example) for example in examples]).map(
        lambda batch: tokenizer(batch["text"], padding="max_length", truncation=True, max_length=512), batched=True
    )
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=BATCH, max_steps=steps, save_strategy="no",
        report_to="none", disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    return _seconds(Trainer(network, arguments, train_dataset=data, processing_class=tokenizer))


def finetune_seconds(model: Path, examples: Sequence[Example], steps: int) -> float:
    """Return the seconds of training with the settings of `producer finetune`."""
    set_seed(42)
    labels, recipe = infer_labels(TASK, examples), RECIPES[TASK]
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2, dtype=torch.float32)
    data = to_dataset(recipe.encode(tokenizer, examples, labels, 512).columns)
    arguments = build_training_arguments(_run_config(model, steps), LABELED, metric=None)
    collator = DataCollatorWithPadding(tokenizer)
    return _seconds(Trainer(network, arguments, train_dataset=data, processing_class=tokenizer, data_collator=collator))


def _run_config(model: Path, steps: int) -> TrainingRunConfig:
    training = TrainingOptions(batch_size=BATCH, arguments={"max_steps": steps, "save_strategy": "no"})
    spec = JobSpec(new_job_id(), TASK, str(model), training=training.encode())
    return TrainingRunConfig(
        job=spec, options=training, base_model=str(model), model_info={}, work_dir=tempfile.mkdtemp(), example_files={},
        checkpoint_seconds=1e9, cuda=torch.cuda.is_available(), processes=1, batch_size=BATCH, gradient_accumulation=1,
    )  # fmt: skip


def _seconds(trainer: Trainer) -> float:
    trainer.remove_callback(PrinterCallback)
    begun = time.perf_counter()
    trainer.train()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def compare(model: Path, examples: Sequence[Example], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of an epoch for each strategy and round, after one unmeasured step."""
    strategies: dict[str, Callable[[Path, Sequence[Example], int], float]] = {
        "tutorial": tutorial_seconds,
        "finetune": finetune_seconds,
    }
    steps = -(-len(examples) // BATCH)
    taken: dict[str, list[float]] = {name: [] for name in strategies}
    for strategy in strategies.values():
        strategy(model, examples, 1)
    for _ in range(rounds):
        for name, strategy in strategies.items():
            taken[name].append(strategy(model, examples, steps))
    return taken


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3, help="the median is reported")
    parser.add_argument("--mix", choices=sorted(MIXES), default="mixed")
    parser.add_argument("--model", type=Path, default=None)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    warnings.filterwarnings("ignore", "'pin_memory' argument")
    print(described())
    model = options.model or minilm()
    examples = labeled(options.mix, options.examples)
    words = statistics.mean(len(str(example["text"]).split()) for example in examples)
    taken = compare(model, examples, options.rounds)
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    print(
        f"{model.name}: {len(examples)} examples, mean {words:.0f} words, batches of {BATCH}, rounds: {options.rounds}"
    )
    for name, seconds in medians.items():
        rounds = ", ".join(f"{value:.1f}" for value in taken[name])
        print(f"  {name:<9} {seconds:7.1f} s an epoch, {len(examples) / seconds:7.1f} examples/s  ({rounds})")
    print(f"  ratio     {medians['tutorial'] / medians['finetune']:7.1f}")


if __name__ == "__main__":
    main()
