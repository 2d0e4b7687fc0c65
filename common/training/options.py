"""Fine-tuning options: one frozen value on the wire, checked the same way by the producer and the worker."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from common.errors import UsageError
from common.records import Json
from common.template import TEMPLATE_FIELD, Template
from common.training.labels import Labels
from common.training.trainer_arguments import check_argument
from common.validation import checked

#: Prefix of a dataset that the worker loads from the Hub itself.
HUB_PREFIX = "hf:"
#: Such a dataset, with an optional split or slice: `hf:NAME:train[:10%]`. No path can be written like this.
_HUB_DATASET = re.compile(r"^hf:(?!.*\.\.)[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.+:%\[\]-]+)?\Z", re.ASCII)
_FIELD = re.compile(r"^finetune's (\w+)")

#: What a message calls msgspec's types.
_WORDS = {" | null`": "`", "`float`": "a number", "`int`": "a whole number", "`str`": "text", "`array`": "a list"}

DTYPES = ("float32", "bfloat16", "float16")
_Count = Annotated[int, Meta(ge=1, le=1_000_000)]


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """The options of a fine-tune job. `decode` checks them."""

    epochs: Annotated[float, Meta(ge=1e-6, le=100_000)] = 3.0
    batch_size: _Count = 16  #: examples in one forward pass on one device
    gradient_accumulation: _Count = 1  #: forward passes in one step
    learning_rate: Annotated[float, Meta(ge=0, le=1e9)] | None = None  #: None: the trainer's, by whether there is LoRA
    warmup: Annotated[float, Meta(ge=0, le=1e9)] = 0.1  #: below 1 a fraction of all steps, otherwise steps
    weight_decay: Annotated[float, Meta(ge=0, le=1e9)] = 0.01
    max_length: Annotated[int, Meta(ge=4, le=1_000_000)] | None = None  #: tokens; None: the model's limit
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 42
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  #: None: bfloat16 where the device has it
    lora: bool = False
    lora_r: Annotated[int, Meta(ge=1, le=4096)] = 16
    lora_alpha: _Count = 32
    lora_dropout: Annotated[float, Meta(ge=0, le=0.99)] = 0.05
    merge: bool = True  #: LoRA adapters into the model in the end, instead of storing them alone
    early_stopping: _Count | None = None  #: evaluations without a better metric
    metric_for_best: str | None = None
    loss: str | None = None  #: of `common.training.losses`; None: by the kind of examples
    matryoshka_dims: tuple[_Count, ...] | None = None  #: dimensions that vectors may be cut to
    gpus: Annotated[int, Meta(ge=1, le=1024)] | None = None  #: processes, one for each GPU; None: all GPUs
    report_to: tuple[Literal["tensorboard", "trackio", "wandb", "mlflow"], ...] = ()  #: besides the queue
    arguments: Mapping[str, Json] = field(default_factory=dict)  #: further fields of `TrainingArguments`
    text_column: str | None = None
    label_column: str | None = None
    template: str | None = None  #: makes the text of each example from its columns (`common.template`)
    train_source: str | None = None  #: `hf:NAME[:SPLIT]`; None: the job's payloads
    eval_source: str | None = None
    eval_split: Annotated[float, Meta(ge=1e-6, le=0.9)] | None = None  #: fraction held out for evaluation
    labels: Labels | None = None  #: None: the worker infers them

    def encode(self) -> dict[str, Json]:
        """Return the JSON object that `decode` takes."""
        return {**asdict(self), "report_to": list(self.report_to)}

    @classmethod
    def decode(cls, raw: Mapping[str, Json]) -> "TrainingOptions":
        """Return the options of a JSON object, or of the command line.

        Raises:
            UsageError: A value has the wrong type or is out of range; names the option, what is expected and what was
                found.
        """
        try:
            options: TrainingOptions = checked(dict(raw), cls, "finetune")
        except ValueError as error:
            text = _FIELD.sub(lambda found: f"--{found[1].replace('_', '-')}", str(error))
            for kind, words in _WORDS.items():
                text = text.replace(kind, words)
            raise UsageError(f"{text}.") from error
        for name in ("lora_r", "lora_alpha", "lora_dropout"):
            if not options.lora and getattr(options, name) != getattr(_DEFAULTS, name):
                raise UsageError(f"--{name.replace('_', '-')} requires --lora.")
        if not options.lora and not options.merge:
            raise UsageError("--no-merge requires --lora.")
        for source in filter(None, (options.train_source, options.eval_source)):
            if not _HUB_DATASET.match(source):
                raise UsageError(f"{source!r} is not a dataset on the Hub: expected hf:NAME or hf:NAME:SPLIT.")
        for name, value in options.arguments.items():
            check_argument(name, value)
        _check_template(options)
        return options


_DEFAULTS = TrainingOptions()


def _check_template(options: TrainingOptions) -> None:
    if options.template is None:
        return
    try:
        Template.parse(options.template)
    except ValueError as error:
        raise UsageError(f"--template: {str(error).rstrip('.')}.") from error
    if options.text_column is not None:
        raise UsageError("--template and --text-column both name the text: use only one.")
    if options.label_column == TEMPLATE_FIELD:
        raise UsageError(
            f"--label-column {TEMPLATE_FIELD}: with --template, this is the name of the text that it makes. Rename the "
            "column."
        )
