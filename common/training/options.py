"""What a fine-tune job asks for: one frozen value on the wire, checked the same way on both sides.

The producer makes it from options, the worker reads it out of `JobSpec.training`. Knows no files and no libraries;
further fields of transformers' `TrainingArguments` are checked by name (`common.training.trainer_arguments`).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from types import NoneType

from common.errors import UsageError
from common.records import Json
from common.suggestions import did_you_mean
from common.training.trainer_arguments import FIELDS, FORBIDDEN

#: What `--dtype` takes.
DTYPES = ("float32", "bfloat16", "float16")
#: Prefix of a training set that the worker loads from the hub by itself.
HUB_PREFIX = "hf:"
#: A data set of the hub: `hf:NAME`, and a split or a slice of one, as `:train[:10%]`. No path can be written so.
_HUB_DATASET = re.compile(r"^hf:(?!.*\.\.)[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.+:%\[\]-]+)?$", re.ASCII)

#: The tasks that can be fine-tuned, and what kinds of label (`common.training.labels`) their examples may have.
LABEL_KINDS: dict[str, tuple[str, ...]] = {
    "text-classification": ("single_label", "multi_label", "regression"),
    "token-classification": ("tags", "entities"),
    "fill-mask": ("",),
    "text-generation": ("",),
}
#: Metrics of an evaluation, by kind of label; the first is what the best checkpoint is chosen by.
METRICS: dict[str, tuple[str, ...]] = {
    "single_label": ("f1_macro", "accuracy", "f1_micro", "loss"),
    "multi_label": ("f1_macro", "accuracy", "f1_micro", "loss"),
    "regression": ("mse", "mae", "r2", "loss"),
    "tags": ("f1_macro", "accuracy", "loss"),
    "entities": ("f1", "precision", "recall", "accuracy", "f1_macro", "loss"),
    "": ("perplexity", "loss"),
}
#: Metrics of which less is better.
LESS_IS_BETTER = frozenset({"loss", "perplexity", "mse", "mae"})


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """The options of a fine-tune job."""

    epochs: float = 3.0
    batch_size: int = 16  #: examples of one forward pass on one device
    gradient_accumulation: int = 1  #: forward passes of one step
    learning_rate: float | None = None  #: None: 5e-5, with LoRA 2e-4
    warmup: float = 0.1  #: below 1 a share of all steps, else steps
    weight_decay: float = 0.01
    max_length: int | None = None  #: tokens; None: what the model takes
    seed: int = 42
    dtype: str | None = None  #: None: bfloat16 where the device has it
    lora: bool = False
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    early_stopping: int | None = None  #: evaluations without a better metric
    metric_for_best: str | None = None
    gpus: int | None = None  #: processes, one for each GPU; None: all GPUs of the worker
    arguments: Mapping[str, Json] = field(default_factory=dict)  #: further fields of `TrainingArguments`
    text_column: str | None = None
    label_column: str | None = None
    train_source: str | None = None  #: `hf:NAME[:SPLIT]`; None: the job's payloads
    eval_source: str | None = None
    eval_split: float | None = None  #: share of a hub training set that is held out
    labels: Mapping[str, Json] | None = None  #: `common.training.labels.Labels`, encoded; None: the worker finds out

    @property
    def rate(self) -> float:
        """The learning rate in force."""
        return self.learning_rate if self.learning_rate is not None else (2e-4 if self.lora else 5e-5)

    def encode(self) -> dict[str, Json]:
        """Return the JSON object that `decode` takes."""
        return asdict(self)

    @classmethod
    def decode(cls, raw: Mapping[str, Json]) -> "TrainingOptions":
        """Return the value of that object.

        Raises:
            ValueError: a field is of the wrong type or out of range.
        """
        known = {item.name for item in fields(cls)}
        values = {name: value for name, value in raw.items() if name in known}
        for name, value in values.items():
            if (isinstance(value, bool) and bool not in _SHAPES[name]) or not isinstance(value, _SHAPES[name]):
                raise ValueError(f"{name} of a fine-tune job cannot be {value!r}")
        training = cls(**values)
        check(training)
        return training


_OPTIONAL_TEXT = (str, NoneType)
_SHAPES: dict[str, tuple[type, ...]] = {
    "epochs": (int, float),
    "batch_size": (int,),
    "gradient_accumulation": (int,),
    "learning_rate": (int, float, NoneType),
    "warmup": (int, float),
    "weight_decay": (int, float),
    "max_length": (int, NoneType),
    "seed": (int,),
    "dtype": _OPTIONAL_TEXT,
    "lora": (bool,),
    "lora_r": (int,),
    "lora_alpha": (int,),
    "lora_dropout": (int, float),
    "early_stopping": (int, NoneType),
    "metric_for_best": _OPTIONAL_TEXT,
    "gpus": (int, NoneType),
    "arguments": (dict,),
    "text_column": _OPTIONAL_TEXT,
    "label_column": _OPTIONAL_TEXT,
    "train_source": _OPTIONAL_TEXT,
    "eval_source": _OPTIONAL_TEXT,
    "eval_split": (float, NoneType),
    "labels": (dict, NoneType),
}

_DEFAULTS = TrainingOptions()

#: What each number must be: option, lowest, highest.
_RANGES: dict[str, tuple[str, float, float]] = {
    "epochs": ("--epochs", 1e-6, 100_000),
    "batch_size": ("--batch-size", 1, 1_000_000),
    "gradient_accumulation": ("--gradient-accumulation", 1, 1_000_000),
    "learning_rate": ("--learning-rate", 0, math.inf),
    "warmup": ("--warmup", 0, 1e9),
    "weight_decay": ("--weight-decay", 0, 1e9),
    "max_length": ("--max-length", 4, 1_000_000),
    "seed": ("--seed", 0, 2**32 - 1),
    "lora_r": ("--lora-r", 1, 4096),
    "lora_alpha": ("--lora-alpha", 1, 1_000_000),
    "lora_dropout": ("--lora-dropout", 0, 0.99),
    "early_stopping": ("--early-stopping", 1, 1_000_000),
    "gpus": ("--gpus", 1, 1024),
    "eval_split": ("--eval-split", 1e-6, 0.9),
}


def check(training: TrainingOptions) -> None:
    """Check every number against its range, and the names among the further arguments.

    Raises:
        UsageError: one is out of range or unknown; names the option.
    """
    for name, (option, low, high) in _RANGES.items():
        value = getattr(training, name)
        if value is not None and not (low <= value <= high and math.isfinite(value)):
            raise UsageError(f"{option} must be from {low:g} to {high:g}, found {value:g}.")
    for name in ("lora_r", "lora_alpha", "lora_dropout"):
        if not training.lora and getattr(training, name) != getattr(_DEFAULTS, name):
            raise UsageError(f"{_RANGES[name][0]} is for --lora alone, which is not given.")
    if training.dtype is not None and training.dtype not in DTYPES:
        raise UsageError(f"--dtype must be one of {', '.join(DTYPES)}, found {training.dtype!r}.")
    for source in (training.train_source, training.eval_source):
        if source is not None and not _HUB_DATASET.match(source):
            raise UsageError(f"{source!r} names no data set of the hub: expected hf:NAME or hf:NAME:SPLIT.")
    for name, value in training.arguments.items():
        check_argument(name, value)


def check_argument(name: str, value: Json) -> None:
    """Check that `-p NAME=VALUE` is a field of `TrainingArguments` that a job may set, and its value one of its type.

    Raises:
        UsageError: there is no such field, or it has an option of its own, or it is the worker's business.
    """
    if name in FORBIDDEN:
        raise UsageError(f"-p {name}= cannot be set: {FORBIDDEN[name]}.")
    if name not in FIELDS:
        known = FIELDS.keys() | FORBIDDEN.keys()  # of those that are barred, the next message says why
        raise UsageError(f"-p {name}=: TrainingArguments has no field of that name. {did_you_mean(name, known)}")
    if not FIELDS[name].accepts(value):
        raise UsageError(f"-p {name}= must be {FIELDS[name].description}, found {value!r:.200}.")
