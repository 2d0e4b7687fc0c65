"""Fine-tune options: one frozen object that the command line, the client and the plan share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from common.records import Json
from common.training.options import TrainingOptions
from producer.submit.options import AfterArg


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneOptions:
    """The options of `producer finetune`, without the training data."""

    task: str = "text-classification"
    model: str  #: Hub id, directory on the worker's machine, or `job:ID`
    revision: str | None = None
    evaluation: str | None = None  #: file, or Hub dataset, to evaluate with
    format: str | None = None  #: of the files, None: by their extension
    quoting: str | None = None
    params: Mapping[str, Json] | Sequence[str] = ()  #: further fields of `TrainingArguments`, or NAME=VALUE
    name: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    priority: str = "normal"
    notify: str | None = None  #: as in `SubmitOptions`
    after: AfterArg = ()  #: jobs that it waits for
    after_any: bool = False  #: run after these in any case
    wait: bool = False
    training: Mapping[str, Json] = field(default_factory=dict)  #: fields of `TrainingOptions`; those have the defaults

    @classmethod
    def of(cls, **values: Any) -> "FinetuneOptions":
        """Return the options of these fields, and of fields of `TrainingOptions`."""
        own = {item.name for item in fields(cls)} - {"training"}
        training = {name: value for name, value in values.items() if name not in own}
        return cls(**{name: value for name, value in values.items() if name in own}, training=training)


#: Fields of `TrainingOptions` that others determine.
_DERIVED = {"arguments", "eval_source", "labels", "train_source"}
#: The keywords of `FinetuneOptions.of`.
KEYWORDS = frozenset(
    {item.name for item in fields(FinetuneOptions)} - {"training"}
    | {item.name for item in fields(TrainingOptions)} - _DERIVED
)
