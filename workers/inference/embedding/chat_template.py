"""Texts as messages of a chat: how sentence-transformers 6 runs an embedding model whose base has a chat template."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jinja2

from common.errors import ModelError
from common.records import Json
from workers.inference.embedding.sentence_transformers_config import ChatTemplateConfig
from workers.inference.text.tokenization import TokenizedText, encode

#: Two texts without a common last token: what their rendered messages end with is the template's.
_FILLERS = ("0", "1 2 3 4")


class ChatTemplateEncoder:
    """The chat template of a tokenizer, filled in as a model's configuration says."""

    def __init__(self, tokenizer: Any, config: ChatTemplateConfig) -> None:
        self._tokenizer = tokenizer
        self._config = config
        self._endings: dict[str, list[int]] = {}  #: by prompt

    def encode(self, texts: Sequence[str], prompt: str, limit: int | None) -> list[TokenizedText]:
        """Return the texts tokenised, each as what a user says, after the prompt as what the system says.

        The end of the template stays, whatever is cut: a model that pools the last token depends on it.

        Raises:
            ModelError: `bad_param`, the template has no place for a prompt.
        """
        rows = encode(self._tokenizer, [self._rendered(text, prompt) for text in texts], limit, special=False)
        if not self._config.restore_suffix:
            return rows
        return [row if limit is None or len(row) < limit else self._ended(row, prompt) for row in rows]

    def _rendered(self, text: str, prompt: str) -> str:
        messages = [self._message("user", text)]
        if prompt:
            messages.insert(0, self._message("system", prompt))
        try:
            found: str = self._tokenizer.apply_chat_template(messages, tokenize=False, **self._config.template)
        except jinja2.TemplateError as error:
            raise ModelError("bad_param", f"The model's chat template refuses the prompt: {error}") from error
        return found

    def _message(self, role: str, text: str) -> Mapping[str, Json]:
        return {"role": role, "content": [{"type": "text", "text": text}] if self._config.structured else text}

    def _ended(self, row: TokenizedText, prompt: str) -> TokenizedText:
        if prompt not in self._endings:
            self._endings[prompt] = self._ending(prompt)
        ids, ending = row.features["input_ids"], self._endings[prompt][-len(row) :]
        return replace(row, features={**row.features, "input_ids": ids[: len(ids) - len(ending)] + ending})

    def _ending(self, prompt: str) -> list[int]:
        """Return the tokens behind the text that the template writes."""
        texts = [self._rendered(filler, prompt) for filler in _FILLERS]
        one, other = (row.features["input_ids"] for row in encode(self._tokenizer, texts, None, special=False))
        shortest = min(len(one), len(other))
        count = next((n for n in range(shortest) if one[-1 - n] != other[-1 - n]), shortest)
        return one[len(one) - count :] if 0 < count < shortest else []
