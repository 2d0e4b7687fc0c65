"""The tasks that an engine can run: those of transformers, over a model without weights.

Parameters, prompts and outputs are made by the very code that runs without an engine, so both ways agree in all but
the tokens. Of the model that code reads the configurations alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from heapq import nlargest
from operator import itemgetter
from typing import Any, cast

import torch
import transformers
from transformers.utils.chat_template_utils import Chat

from common.records import Json
from workers.inference.engines.interface import Continuation, Prompt
from workers.inference.generation.logprobs import describe, token_texts
from workers.inference.generation.new_text import NewText
from workers.inference.loading.loader import ModelSource, load_tokenizer, load_without_weights
from workers.inference.tasks.generated_texts import TextParams, Written
from workers.inference.tasks.media_files import SharedFiles
from workers.inference.tasks.multimodal_generation import ImageTextToText
from workers.inference.tasks.pipeline_task import PipelineParams, RowOutput
from workers.inference.tasks.text_generation import GenerationParams, TextGeneration
from workers.inference.text.truncation import ModelInputs, token_count


class EngineTextGeneration(TextGeneration):
    """Text generation whose tokens come from an engine."""

    @classmethod
    def of(cls, source: ModelSource) -> "EngineTextGeneration":
        """Return the task for the model of `source`.

        Raises:
            ModelError: as `load_without_weights` and `load_tokenizer`.
        """
        model = load_without_weights(getattr(transformers, cls.auto_class), source)
        task = cls(cls.pipeline_class(model=model, tokenizer=load_tokenizer(source), device=model.device))
        task.max_new_tokens = source.options.max_new_tokens
        return task

    def prompt(self, inputs: ModelInputs, params: GenerationParams) -> Prompt:
        """Return what to ask the engine for a prepared record."""
        return _prompt(inputs, params)

    def text_row(self, inputs: ModelInputs, texts: Sequence[Continuation], params: GenerationParams) -> RowOutput:
        """Return the row of a prompt from its texts."""
        return _row(self, inputs, texts, params) | {"prompt_text": inputs["prompt_text"]}


class EngineImageTextToText(ImageTextToText):
    """Text about images whose tokens come from an engine, which prepares the images too."""

    @classmethod
    def of(cls, source: ModelSource) -> "EngineImageTextToText":
        """Return the task for the model of `source`.

        Raises:
            ModelError: as `load_without_weights` and `load_processor`.
        """
        model = load_without_weights(cls.find_head(source), source)
        task = cls(cls.pipeline_class(model=model, device=model.device, **cls.load_parts(source)))
        task.max_new_tokens = source.options.max_new_tokens
        task.files = SharedFiles(source.options.shared, source.options.max_file_bytes)
        return task

    def preprocessed(self, value: Any, before: Mapping[str, Any]) -> list[ModelInputs]:
        """Return the text of a prompt, and its images as they are."""
        if isinstance(value, Chat):
            text, images = self._rendered(value, before), _images(value.messages)
        elif isinstance(value, str):
            text, images = value, []
        else:
            text, images = value["text"], [value["images"]]
        ids = self.pipe.processor.tokenizer(text, add_special_tokens=not isinstance(value, Chat))["input_ids"]
        return [{"text": value, "prompt": text, "images": images, "input_ids": torch.tensor([ids])}]

    def tokens(self, inputs: ModelInputs, params: PipelineParams) -> int:
        """Return the tokens of the text, and the new ones; the engine knows those of the images."""
        config = cast("TextParams", params).config
        return token_count(inputs) + int(config.max_new_tokens or config.max_length)

    def prompt(self, inputs: ModelInputs, params: PipelineParams) -> Prompt:
        """Return what to ask the engine for a prepared record."""
        return replace(_prompt(inputs, cast("TextParams", params)), text=inputs["prompt"], images=inputs["images"])

    def text_row(self, inputs: ModelInputs, texts: Sequence[Continuation], params: PipelineParams) -> RowOutput:
        """Return the row of a prompt from its texts."""
        return _row(self, inputs, texts, cast("TextParams", params)) | {"prompt_text": inputs["text"]}

    def _rendered(self, chat: Chat, before: Mapping[str, Any]) -> str:
        continues = before.get("continue_final_message")
        if continues is None:
            continues = chat.messages[-1]["role"] == "assistant"
        found: str = self.pipe.processor.apply_chat_template(
            chat.messages, tokenize=False, continue_final_message=continues, add_generation_prompt=not continues
        )
        return found


EngineTask = EngineTextGeneration | EngineImageTextToText
#: By the name of the task.
ENGINE_TASKS: Mapping[str, type[EngineTask]] = {
    task.name: task for task in (EngineTextGeneration, EngineImageTextToText)
}


def _prompt(inputs: ModelInputs, params: TextParams) -> Prompt:
    constraint = inputs["constraint"]
    return Prompt(
        tokens=inputs["input_ids"][0].tolist(),
        seed=inputs.get("record_seed"),
        structure=None if constraint is None else constraint.structure,
        logprobs=params.logprobs,
    )


def _row(task: EngineTask, inputs: ModelInputs, texts: Sequence[Continuation], params: TextParams) -> dict[str, Any]:
    new = [NewText.read(text.tokens, params.config, task.tokenizer) for text in texts]
    told: list[Json] = []
    if params.logprobs is not None:
        told = [_told(task.tokenizer, *pair, params.logprobs) for pair in zip(new, texts, strict=True)]
    prompt, longest = inputs["input_ids"][0].tolist(), max(len(text.tokens) for text in texts)
    rows = [[*prompt, *text.tokens, *[task.pad_id] * (longest - len(text.tokens))] for text in texts]
    return {
        "generated_sequence": torch.tensor([rows]),
        "input_ids": inputs["input_ids"],
        "written": Written(new, inputs["constraint"], told),
    }


def _told(tokenizer: Any, new: NewText, text: Continuation, top: int) -> list[Json]:
    """Return the tokens of a text with their log-probabilities."""
    text_of = token_texts(tokenizer)
    return [
        describe(text_of, token, scores[token], nlargest(top, scores.items(), itemgetter(1)))
        for token, scores in zip(new.tokens[: new.length], text.logprobs, strict=False)
    ]


def _images(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    return [part["image"] for part in parts if part.get("type") == "image"]
