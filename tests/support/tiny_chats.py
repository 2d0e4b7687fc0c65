"""Tiny chat models and conversations: a tokenizer with the marks of a turn, and a template of one kind or another."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.tiny_models import SMALL
from tests.support.tiny_tokenizers import byte_level

_TURN = "'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n'"
#: Says nothing of who says what, and is none that TRL knows.
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ " + _TURN + " }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
#: The same, with the assistant's words marked.
MARKED_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant\\n' }}{% generation %}{{ message['content'] + '<|im_end|>\\n' }}{% endgeneration %}"
    "{% else %}{{ " + _TURN + " }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)  # fmt: skip


def says(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def chat(*turns: str, system: str | None = None) -> list[dict[str, str]]:
    """Messages of the user and the assistant in turn."""
    begin = [] if system is None else [says("system", system)]
    return begin + [says(("user", "assistant")[number % 2], text) for number, text in enumerate(turns)]


CHATS: Sequence[list[dict[str, str]]] = (
    chat("Where is Emil?", "Emil is in Seoul"),
    chat("Is the house old?", "the house is old", "And Berlin?", "Berlin is old and a cat", system="a dog"),
    chat("a cat", "a dog and a cat", "Dora?", "Dora and Emil sleep in the house"),
    chat("the river", "the river of Seoul is old"),
)
PREFERENCES: Sequence[dict[str, Any]] = [
    {"prompt": chat(question), "chosen": [says("assistant", good)], "rejected": [says("assistant", bad)]}
    for question, good, bad in (
        ("Where is Emil?", "Emil is in Seoul", "a cat"),
        ("Is the house old?", "the house is old", "a cat sleeps"),
        ("Who sleeps?", "Dora and Emil sleep", "a cat is a cat"),
        ("the river", "the river of Seoul is old", "a cat and a cat"),
    )
]


def chat_model(directory: Path, template: str | None = PLAIN_TEMPLATE, positions: int = 512) -> Path:
    """A tiny Llama that has learned nothing, with a chat template."""
    tokenizer = byte_level("<s> $A", limit=positions)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=positions, bos_token_id=1,
        eos_token_id=2, initializer_range=0.2, **SMALL,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory
