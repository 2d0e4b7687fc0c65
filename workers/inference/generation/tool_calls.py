"""Calls of tools in the words of a model: each family writes them in a form of its own.

A form is a response template of transformers, whose parser reads it. Tokenizers may bring theirs, transformers has
those of some families, and the others are found by what a chat template shows to the model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import transformers

from common.chat import tool_name
from common.errors import ModelError, RecordError
from common.json_codec import to_json
from common.records import Json


def _form(**calls: Json) -> dict[str, Json]:
    """Return a response template: calls as these regions say, and everything else is content."""
    # The prompts of these families open no region, so no prompt is read: its anchor is never looked for.
    content = {"content": "text", "repeats": True, "join": ""}
    return {"start_anchor": "\0", "fields": {"tool_calls": calls, "content": content}}


def _function(name: str, arguments: str) -> dict[str, Json]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


#: What a chat template contains, and the form of the calls that it asks for.
_FORMS: Sequence[tuple[str, dict[str, Json]]] = (
    # Hermes, and the many that follow it: <tool_call>{"name": "f", "arguments": {}}</tool_call>
    (
        "<tool_call>",
        _form(
            open_pattern=r"\s*<tool_call>", close="</tool_call>", repeats=True, content="json",
            transform=_function("{content.name}", "{content.arguments}"),
        ),
    ),
    # Mistral, since its version 11: [TOOL_CALLS]f[ARGS]{}
    (
        "[ARGS]",
        _form(
            open_pattern=r"\s*\[TOOL_CALLS\](?P<name>[\w.-]+)(?:\[CALL_ID\]\w+)?\[ARGS\]",
            close_pattern=r"(?=\[TOOL_CALLS\])|\s*</s>|\s*$", repeats=True, content="json",
            transform=_function("{name}", "{content}"),
        ),
    ),
    # Mistral, before that: [TOOL_CALLS] [{"name": "f", "arguments": {}}]
    (
        "[TOOL_CALLS]",
        _form(
            open_pattern=r"\s*\[TOOL_CALLS\]", close_pattern=r"\s*</s>|\s*$", content="json", transform_each=True,
            transform=_function("{name}", "{arguments}"),
        ),
    ),
    # Llama 3: {"name": "f", "parameters": {}}, and nothing else; semicolons part several
    (
        '{"name": function name, "parameters":',
        _form(
            open_pattern=r'(?:^\s*(?:<\|python_tag\|>)?|(?<=\})\s*;)\s*(?=\{\s*"name")',
            close_pattern=r'(?<=\})(?=\s*;\s*\{\s*"name")|\s*(?:<\|eo[tm]_id\|>|$)',
            content="json", repeats=True, transform=_function("{content.name}", "{content.parameters}"),
        ),
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model answered that may call tools."""

    content: str
    calls: list[dict[str, Json]]  #: each with `name`, and `arguments` as JSON text
    reasoning: dict[str, Json] = field(default_factory=dict)  #: `reasoning_content`, where the form tells it apart


def check_parser() -> None:
    """Check that the installed transformers can read calls.

    Raises:
        ModelError: `bad_param`.
    """
    if find_spec("transformers.utils.chat_parsing") is None:
        raise ModelError(
            "bad_param", f"tool_calls needs transformers 5.16 or later; this worker has {transformers.__version__}."
        )


class ToolCallReader:
    """Reads the calls that one model writes.

    Args:
        model: its type may tell the form.
        tokenizer: of the model; its chat template may tell the form.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model
        self._tokenizer = tokenizer

    def check(self, tools: Sequence[Mapping[str, Json]]) -> None:
        """Check that the model is shown tools at all.

        Raises:
            RecordError: `bad_param`.
        """
        if "tools" not in self._chat_template(tools):
            raise RecordError(
                "bad_param", "This model's chat template has no place for tools, so the model would not see them."
            )

    def read(self, prompt: Sequence[int], tokens: Sequence[int], tools: Sequence[Mapping[str, Json]]) -> Reply | None:
        """Return the calls in a text, and the rest of it; None if it calls none of the tools.

        Args:
            prompt: its token ids; it may hold the beginning of the answer.
            tokens: those of the answer, without the one that ends it.
            tools: that the model may call.
        """
        # Releases of transformers that this runs with may lack them: see `check_parser`.
        from transformers.utils.chat_parsing import parse_response
        from transformers.utils.chat_parsing.response_templates import load_response_template

        form = self._form(tools)
        if form is None:
            return None
        template = load_response_template(form)
        before, text = self._tokenizer.decode(prompt), self._tokenizer.decode(tokens)
        try:
            found = parse_response(
                text, template, prefix=before if template.start_anchor_re.search(before) else "", tools=list(tools)
            )
            calls = [_call(one) for one in found.get("tool_calls") or ()]
        except (ValueError, KeyError, TypeError):  # what looks like a call is not valid: all of it is text
            return None
        names = set(map(tool_name, tools))
        if not calls or any(call["name"] not in names for call in calls):
            return None
        reasoning = {name: found[name] for name in ("reasoning_content",) if found.get(name)}
        return Reply(found.get("content") or "", calls, reasoning)

    def _form(self, tools: Sequence[Mapping[str, Json]]) -> Any:
        if getattr(self._tokenizer, "response_template", None) is None:
            template = self._chat_template(tools)
            known = next((form for marker, form in _FORMS if marker in template), None)
            # Newer Qwens have the same tags around another form.
            if known is not None and "<function=" not in template:
                return known
        from transformers.cli.serving.utils import get_response_template

        return get_response_template(self._tokenizer, self._model)

    def _chat_template(self, tools: Sequence[Mapping[str, Json]]) -> str:
        return str(self._tokenizer.get_chat_template(tools=list(tools)))


def _call(value: Json) -> dict[str, Json]:
    """Return one call in a plain form.

    Raises:
        ValueError: it is not a call.
    """
    function = value["function"]
    name, arguments = function["name"], function["arguments"]
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError("a call needs a name and an object of arguments")
    return {"name": name, "arguments": to_json(arguments)}
