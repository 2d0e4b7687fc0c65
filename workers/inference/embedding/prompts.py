"""Prompts of embedding models: which text a job puts before each of its own.

As in sentence-transformers, `prompt` is the text itself, `prompt_name` names one of the model's, and `task` says that
the texts are queries or documents, which chooses the prompt of that name (`encode_query` and `encode_document`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from common.errors import ModelError
from common.records import Json

#: The tasks that every model takes; a model with a Router may have routes of other names.
QUERY, DOCUMENT = "query", "document"


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of one model."""

    texts: Mapping[str, str] = field(default_factory=dict)  #: by name
    default: str | None = None  #: the name of the one that is used unless a job chooses another

    def choose(self, params: Mapping[str, Json]) -> str:
        """Return the prompt that a job's parameters choose; empty for none.

        Raises:
            ModelError: `bad_param`, both `prompt` and `prompt_name`, or a name that the model does not have.
        """
        if "prompt" in params and "prompt_name" in params:
            raise ModelError("bad_param", "Set prompt or prompt_name, not both.")
        if "prompt" in params:
            return str(params["prompt"])
        if "prompt_name" not in params and params.get("task") in (QUERY, DOCUMENT):
            return self.texts.get(params["task"], "")
        name = params.get("prompt_name", self.default)
        if name is None:
            return ""
        if name not in self.texts:
            known = ", ".join(self.texts) or "none"
            raise ModelError("bad_param", f"This model has no prompt {name!r}; it has: {known}.")
        return self.texts[name]


def check_task(task: str | None, routes: tuple[str, ...] = ()) -> None:
    """Check what a job says that its texts are.

    Args:
        task: the parameter.
        routes: those of the model's Router.

    Raises:
        ModelError: `bad_param`, the model has no such route.
    """
    if task is not None and task not in (QUERY, DOCUMENT, *routes):
        known = ", ".join(dict.fromkeys((QUERY, DOCUMENT, *routes)))
        raise ModelError("bad_param", f"task must be one of {known} for this model, found {task!r}.")
