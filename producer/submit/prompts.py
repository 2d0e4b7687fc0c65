"""Prompts of a submit: the template that makes its texts, and whether they are asked as chats."""

from collections.abc import Mapping

from common.chat import TASK as CHAT_TASK
from common.errors import UsageError
from common.records import Json
from common.tasks import TASKS, Task
from common.template import TEMPLATE_FIELD, Template
from producer.submit.options import SubmitOptions


def parse_template(text: str | None) -> Template | None:
    """Return the template that the user gave.

    Raises:
        UsageError: It is broken; the message says where.
    """
    if text is None:
        return None
    if not isinstance(text, str):
        raise UsageError(f"--template: expected text, found {text!r:.80}.")
    try:
        return Template.parse(text)
    except ValueError as error:
        raise UsageError(f"--template: {str(error).rstrip('.')}.") from error


def make_template(options: SubmitOptions, task: Task) -> Template | None:
    """Return the template of a submit.

    Raises:
        UsageError: It is broken, the task takes no text, or the input is named by a column as well.
    """
    template = parse_template(options.template)
    if template is None:
        return None
    if TEMPLATE_FIELD not in (task.primary_field, *task.optional):
        raise UsageError(f"--template makes a text, and {task.name} takes {task.required_fields}. Leave it out.")
    if options.column is not None and not task.reads_files and options.column not in task.media:
        raise UsageError("--template and --column both name the input: use only one.")
    return template


def with_chat(params: dict[str, Json], options: SubmitOptions, task: Task, model: str | None) -> dict[str, Json]:
    """Return the parameters of the task with those that the options for chats set.

    A text for the default model of text-generation, which is made for chats, is asked as one.

    Args:
        params: Of the task, as the user chose them.
        options: What the user chose.
        task: The task.
        model: Of the job.

    Raises:
        UsageError: The task has no chats, a parameter is set twice, or the options conflict.
    """
    chosen = {name: value for name in ("chat", "system") if (value := getattr(options, name)) is not None}
    _check_chat_options(chosen, params, options, task)
    params = {**params, **chosen}
    is_default = task.name == CHAT_TASK and model == task.model and options.format != "openai"
    return {"chat": True, **params} if is_default or "system" in params else params


def _check_chat_options(
    chosen: Mapping[str, Json], params: Mapping[str, Json], options: SubmitOptions, task: Task
) -> None:
    for name in chosen:
        if name not in (task.params or {}):
            having = ", ".join(known.name for known in TASKS.values() if name in (known.params or {}))
            raise UsageError(f"--{name} is for {having}; the task is {task.name}.")
        if name in params:
            raise UsageError(f"--{name} and the parameter {name}: use only one.")
    if options.format == "openai" and (given := {"chat", "system"} & {*chosen, *params}):
        raise UsageError(f"--{min(given)} cannot be combined with --format openai: each request says what it asks.")
    if options.system is not None and options.chat is False:
        raise UsageError("--system is the first message of a chat, and --no-chat asks for none: use only one.")
