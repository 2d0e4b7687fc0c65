"""Chat templates of embedding models: each text becomes a chat message, as in sentence-transformers 6."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from common.errors import ModelError
from common.records import Json
from workers.inference.embedding.sentence_transformers_config import ChatTemplateConfig
from workers.inference.text.tokenization import TokenizedText, encode

#: Two texts without a common last token: the common end of their rendered messages is the template's suffix.
_FILLERS = ("0", "1 2 3 4")


class ChatTemplateEncoder:
    """Fills in and tokenizes the chat template of a tokenizer as a model's configuration says."""

    def __init__(self, tokenizer: Any, config: ChatTemplateConfig) -> None:
        self._tokenizer = tokenizer
        self._config = config
        self._suffixes: dict[str, NDArray[np.int64]] = {}  #: by prompt

    def encode(self, texts: Sequence[str], prompt: str, limit: int | None) -> list[TokenizedText]:
        """Return the tokenized texts, each as a user message after the prompt as a system message.

        Truncation keeps the end of the template: a model that pools the last token depends on it.

        Raises:
            ModelError: `bad_param`, the template rejects a prompt.
        """
        rows = encode(self._tokenizer, [self._render(text, prompt) for text in texts], limit, special=False)
        if not self._config.restore_suffix:
            return rows
        return [row if limit is None or len(row) < limit else self._with_suffix(row, prompt) for row in rows]

    def _render(self, text: str, prompt: str) -> str:
        messages = [self._message("user", text)]
        if prompt:
            messages.insert(0, self._message("system", prompt))
        try:
            found: str = self._tokenizer.apply_chat_template(messages, tokenize=False, **self._config.template)
        except jinja2.TemplateError as error:
            raise ModelError("bad_param", f"The model's chat template rejects the prompt: {error}") from error
        return found

    def _message(self, role: str, text: str) -> Mapping[str, Json]:
        return {"role": role, "content": [{"type": "text", "text": text}] if self._config.structured else text}

    def _with_suffix(self, row: TokenizedText, prompt: str) -> TokenizedText:
        if prompt not in self._suffixes:
            self._suffixes[prompt] = self._find_suffix(prompt)
        ids, suffix = row.features["input_ids"], self._suffixes[prompt][-len(row) :]
        return replace(
            row, features={**row.features, "input_ids": np.concatenate([ids[: len(ids) - len(suffix)], suffix])}
        )

    def _find_suffix(self, prompt: str) -> NDArray[np.int64]:
        """Return the tokens that the template writes after the text."""
        texts = [self._render(filler, prompt) for filler in _FILLERS]
        one, other = (row.features["input_ids"] for row in encode(self._tokenizer, texts, None, special=False))
        shortest = min(len(one), len(other))
        count = next((n for n in range(shortest) if one[-1 - n] != other[-1 - n]), shortest)
        return one[len(one) - (count if count < shortest else 0) :]
