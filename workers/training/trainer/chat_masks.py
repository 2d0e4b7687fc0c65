"""Tokens of chats, and which of them the assistant says: what a model learns of a chat.

A chat template may mark the assistant's words (`{% generation %}`). For templates of known families that do not, TRL
has the same template with marks. For any other, the words of an answer are what the template adds to the chat before
it, beyond the prompt for an answer.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError

from common.errors import ModelError, UsageError
from common.records import Json
from common.training.conversations import TOOLS, common_length

Messages = Sequence[Mapping[str, Json]]


class MaskedChat(NamedTuple):
    """The tokens of a chat, and for each whether the assistant says it."""

    ids: list[int]
    learned: list[bool]


class ChatTokenizer:
    """A tokenizer with its chat template.

    Raises:
        ModelError: `no_chat_template`; `no_tokenizer`, it does not know the text of a token.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise ModelError(
                "no_chat_template",
                "This model has no chat template, so it cannot learn from messages. Start from a chat model, or give "
                "texts, or prompts and completions.",
            )
        if not tokenizer.is_fast:
            raise ModelError(
                "no_tokenizer",
                "Learning from messages needs a fast tokenizer (with tokenizer.json): it knows the text of a token.",
            )
        self._tokenizer = tokenizer
        self._template, self._is_marked = _training_template(tokenizer)

    def ids(self, messages: Messages, tools: Json, *, prompt: bool = False) -> list[int]:
        """Return the tokens of messages, for a `prompt` with the beginning of an answer.

        Raises:
            UsageError: The template refuses them.
        """
        found: list[int] = self._apply(messages, tools, tokenize=True, return_dict=True, prompt=prompt)["input_ids"]
        return found

    def masked(self, messages: Messages, tools: Json) -> MaskedChat:
        """Return the tokens of a chat, and which the assistant says.

        Raises:
            UsageError: The template refuses the chat, or does not tell who says what.
        """
        if self._is_marked:
            found = self._apply(
                messages, tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True,
                chat_template=self._template,
            )  # fmt: skip
            if 1 not in found["assistant_masks"]:
                raise UsageError("the chat template marks none of the assistant's words ({% generation %})")
            return MaskedChat(found["input_ids"], [bool(bit) for bit in found["assistant_masks"]])
        whole = self._text(messages, tools)
        spans = [self._span(whole, messages, number, tools) for number in _answers(messages)]
        encoded = self._tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets: Iterable[tuple[int, int]] = encoded["offset_mapping"]
        learned = [any(begin < last and end > first for first, last in spans) for begin, end in offsets]
        return MaskedChat(encoded["input_ids"], learned)

    def ends_with_special_token(self, chat: MaskedChat) -> bool:
        """Whether the last learned token that is not blank is a special one: the model learns where to stop."""
        special = set(self._tokenizer.get_added_vocab().values())
        ids = (id for id, is_learned in zip(reversed(chat.ids), reversed(chat.learned), strict=True) if is_learned)
        return next((id in special for id in ids if id in special or self._tokenizer.decode([id]).strip()), False)

    def _span(self, whole: str, messages: Messages, number: int, tools: Json) -> tuple[int, int]:
        """Return where the text of an answer begins and ends: what its message adds to the prompt."""
        through = self._text(messages[: number + 1], tools)
        prompt = self._text(messages[:number], tools, prompt=True)
        begin = common_length(prompt, through)
        if begin < len(prompt):  # the prompt for an answer ends otherwise, such as with an empty thought
            before = self._text(messages[:number], tools)
            begin = begin if through.startswith(before) and begin >= len(before) else -1
        if begin < 0 or not whole.startswith(through):
            raise UsageError(
                "the chat template writes earlier messages otherwise once others follow, and does not mark the "
                "assistant's words, so they cannot be told from the rest. Put {% generation %} and {% endgeneration %} "
                "around them in the template (chat_template.jinja), or give chats with a single answer"
            )
        return begin, len(through)

    def _text(self, messages: Messages, tools: Json, *, prompt: bool = False) -> str:
        found: str = self._apply(messages, tools, tokenize=False, prompt=prompt)
        return found

    def _apply(self, messages: Messages, tools: Json, *, prompt: bool = False, **options: Any) -> Any:
        try:
            return self._tokenizer.apply_chat_template(
                list(messages), tools=tools, add_generation_prompt=prompt, **options
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:  # a template is code of the model's author
            raise UsageError(f"the model's chat template refuses it: {error}"[:500]) from error


def _answers(messages: Messages) -> list[int]:
    return [number for number, message in enumerate(messages) if message["role"] == "assistant"]


def _training_template(tokenizer: Any) -> tuple[str | None, bool]:
    """Return the template for training, None for the tokenizer's own, and whether it marks the assistant's words."""
    from trl.chat_template_utils import get_training_chat_template, has_generation_markers

    if has_generation_markers(tokenizer.chat_template):
        return None, True
    try:
        return get_training_chat_template(tokenizer), True
    except (TemplateError, TypeError, ValueError):  # no template that TRL knows
        return None, False


def tools_of(example: Mapping[str, Json]) -> Json:
    """Return the tools of an example, None if it has none."""
    return example.get(TOOLS)
