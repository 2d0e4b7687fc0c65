"""The tasks that an engine can run: those of transformers, over a model without weights.

Parameters, prompts and outputs are made by the very code that runs without an engine, so both ways agree in all but
the tokens. Of the model that code reads the configurations alone.
"""

from collections.abc import Mapping, Sequence
from heapq import nlargest
from operator import itemgetter
from typing import Any

import torch
import transformers

from common.records import Json
from workers.inference.engines.interface import Continuation, Prompt
from workers.inference.generation.logprobs import describe, token_texts
from workers.inference.generation.new_text import NewText
from workers.inference.loading.loader import ModelSource, load_tokenizer, load_without_weights
from workers.inference.tasks.generated_texts import TextParams, Written
from workers.inference.tasks.pipeline_task import RowOutput
from workers.inference.tasks.text_generation import GenerationParams, TextGeneration
from workers.inference.text.truncation import ModelInputs


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


#: By the name of the task.
ENGINE_TASKS: Mapping[str, type[EngineTextGeneration]] = {EngineTextGeneration.name: EngineTextGeneration}


def _prompt(inputs: ModelInputs, params: TextParams) -> Prompt:
    constraint = inputs["constraint"]
    return Prompt(
        tokens=inputs["input_ids"][0].tolist(),
        seed=inputs.get("record_seed"),
        structure=None if constraint is None else constraint.structure,
        logprobs=params.logprobs,
    )


def _row(
    task: EngineTextGeneration, inputs: ModelInputs, texts: Sequence[Continuation], params: TextParams
) -> dict[str, Any]:
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
