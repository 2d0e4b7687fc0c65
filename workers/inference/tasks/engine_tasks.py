"""The tasks that an engine can run: those of transformers, over a model without weights.

Parameters, prompts and outputs are made by the very code that runs without an engine, so both ways agree in all but
the tokens. Of the model that code reads the configurations alone.
"""

from collections.abc import Mapping, Sequence
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
from workers.inference.tasks.pipeline_task import PipelineParams, PreparedRecord, RowOutput
from workers.inference.tasks.text_generation import TextGeneration
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

    def uncounted(self, config: Any) -> str | None:
        """Return a length that the engine cannot keep, as it counts a part of the prompt that is not known here."""
        return None


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
        """Return the tokens of a prompt, in which one stands for an image, and the images as they are."""
        if isinstance(value, Chat):
            text, images = self._rendered(value, before), _images(value)
        elif isinstance(value, str):
            text, images = value, []
        else:
            value, images = value["text"], [value["images"]]
            text = value
        # As `apply_chat_template` does: a template may write the token that begins a text itself.
        begins = self.tokenizer.bos_token
        is_begun = isinstance(value, Chat) and begins is not None and text.startswith(begins)
        ids = self.tokenizer(text, add_special_tokens=not is_begun)["input_ids"]
        return [{"prompt_text": value, "input_ids": torch.tensor([ids]), "images": images}]

    def tokens(self, inputs: ModelInputs, params: PipelineParams) -> int:
        """Return the tokens of the text, and the new ones; the engine knows those of the images."""
        config = cast("TextParams", params).config
        return token_count(inputs) + int(config.max_new_tokens or config.max_length)

    def uncounted(self, config: Any) -> str | None:
        """Return a length that includes the prompt: only the engine knows how many tokens the images have."""
        if config.max_new_tokens is None:
            return f"max_length={config.max_length}"
        return f"min_length={config.min_length}" if config.min_length else None

    def postprocess(self, rows: Sequence[RowOutput], record: PreparedRecord, params: PipelineParams) -> Json:
        """Return the new texts; this pipeline, unlike that of text generation, takes no dimension of records."""
        flat = {**rows[0], "generated_sequence": rows[0]["generated_sequence"][0]}
        return super().postprocess([flat], record, params)

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


def prompt_of(inputs: ModelInputs, params: TextParams) -> Prompt:
    """Return what to ask the engine for a prepared record."""
    constraint = inputs["constraint"]
    return Prompt(
        tokens=inputs["input_ids"][0].tolist(),
        images=inputs.get("images", ()),
        seed=inputs.get("record_seed"),
        structure=None if constraint is None else constraint.structure,
        logprobs=params.logprobs,
    )


def row_of(task: EngineTask, inputs: ModelInputs, texts: Sequence[Continuation], params: TextParams) -> RowOutput:
    """Return the row of a prompt, as the pipeline's `postprocess` takes it, from its texts."""
    new = [NewText.read(text.tokens, params.config, task.tokenizer) for text in texts]
    told: list[Json] = []
    if params.logprobs is not None:
        told = [_told(task.tokenizer, *pair, params.logprobs) for pair in zip(new, texts, strict=True)]
    longest = max(len(text.tokens) for text in texts)
    rows = [[*text.prompt, *text.tokens, *[task.pad_id] * (longest - len(text.tokens))] for text in texts]
    return {
        "generated_sequence": torch.tensor([rows]),
        "input_ids": torch.tensor([texts[0].prompt]),
        "prompt_text": inputs["prompt_text"],
        "written": Written(new, inputs["constraint"], told),
    }


def _images(chat: Chat) -> list[Any]:
    parts = [part for message in chat.messages if isinstance(message["content"], list) for part in message["content"]]
    return [part["image"] for part in parts if part.get("type") == "image"]


def _told(tokenizer: Any, new: NewText, text: Continuation, top: int) -> list[Json]:
    """Return the tokens of a text with their log-probabilities."""
    text_of = token_texts(tokenizer)
    return [
        describe(text_of, token, scores[token], nlargest(top, scores.items(), itemgetter(1)))
        for token, scores in zip(new.tokens[: new.length], text.logprobs, strict=False)
    ]
