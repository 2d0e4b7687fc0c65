"""Text generation: prompts and chats through transformers' pipeline, in left-padded or continuous batches.

A record's text is the same as alone in its batch. The attention mask hides the padding on the left, but not from
parameters that count tokens or read the prompt: with these, only prompts of equal length share a batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import torch
from transformers import pipelines as hf
from transformers.utils.chat_template_utils import Chat

from common.chat import check_tool_calls, is_chat, user_message, with_system_message
from common.errors import Cancelled, ModelError, RecordError
from common.params import check_params
from common.records import Json
from common.task_params import TASK_PARAMS
from common.tasks import TASKS
from workers.inference.core.device_errors import is_device_lost
from workers.inference.core.fallbacks import count_fallback
from workers.inference.core.runner import RunMonitor
from workers.inference.core.token_budget import MAX_TOKENS, TokenBudget
from workers.inference.generation.continuous_batching import Batcher, ContinuousBatcher, try_batcher
from workers.inference.generation.continuous_batching_cpu import CpuContinuousBatcher
from workers.inference.generation.limits import apply_token_limit
from workers.inference.generation.new_text import NewText, longest
from workers.inference.generation.resolved_config import resolve_generation_config, with_default_length
from workers.inference.generation.seeded_sampling import record_seed, sampling_seed
from workers.inference.generation.tool_calls import ToolCallReader, check_parser
from workers.inference.loading.batch_invariance import next_token_logits
from workers.inference.tasks.generated_texts import (
    OWN_PARAMS,
    TextParams,
    TextWriter,
    Written,
    constrained_texts,
    with_details,
)
from workers.inference.tasks.pipeline_task import PipelineTask, PreparedRecord, RowOutput
from workers.inference.text.collate import collate
from workers.inference.text.fields import parse_fields, parse_messages
from workers.inference.text.tokenization import check_text
from workers.inference.text.truncation import ModelInputs, token_count, truncate_left

#: The group of inputs that run in continuous batches.
_CONTINUOUS = -1
#: Parameters that count or read the tokens of the prompt, and their values without effect.
_PROMPT_DEPENDENT = {
    "min_length": 0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None,
    "sequence_bias": None,
}


@dataclass(frozen=True, slots=True)
class GenerationParams(TextParams):
    """A job's parameters, combined with the model's own configuration."""

    prompt_limit: int | None = None  #: the longest prompt, in tokens
    equal_lengths: bool = False  #: whether only prompts of equal length may share a batch
    continuous: bool = False  #: whether continuous batches can run them
    system: str | None = None  #: the message before each chat
    tools: Sequence[Mapping[str, Json]] = ()  #: what the model is told that it may call
    tool_calls: bool = False  #: whether outputs have the calls of tools apart from the text


class TextGeneration(PipelineTask[GenerationParams]):
    """Text that continues a prompt, or the next message of a chat."""

    name = "text-generation"
    pipeline_class = hf.TextGenerationPipeline
    auto_class = "AutoModelForCausalLM"
    generates = True

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        self._writer = TextWriter(pipe.model, pipe.tokenizer)
        self._calls = ToolCallReader(pipe.model, pipe.tokenizer)
        self.batcher: Batcher | None = None

    def try_continuous_batching(self, budget: TokenBudget) -> None:
        """Use continuous batching from now on, if the model gives the same texts with it.

        Args:
            budget: of static batches: whether texts of different lengths may share one.
        """
        model = self.pipe.model
        if model.device.type == "cuda":
            self.batcher = try_batcher(ContinuousBatcher, model)
        elif budget.items > 1 and not budget.equal_lengths:
            self.batcher = try_batcher(CpuContinuousBatcher, model)

    def parse_params(self, params: Mapping[str, Json]) -> GenerationParams:
        """Return the job's parameters, checked so that `generate` rejects none.

        Raises:
            ModelError: `bad_param`; `no_chat_template`, texts are asked as chats and the model has no template.
        """
        params = check_params(self.name, TASK_PARAMS[self.name], params)
        chat = self._is_chat(params)
        check_tool_calls(params)
        if params.get("tool_calls"):
            check_parser()
        own = {name: value for name, value in params.items() if name not in OWN_PARAMS | {"tool_calls"}}
        plain = self._split_params(self._with_stop_strings(own))
        forward = with_default_length(self.name, self.pipe, plain.forward, self.limit)
        config = resolve_generation_config(self.name, self.pipe, forward)
        apply_token_limit(self.name, own, self.pipe.model.generation_config, self.max_new_tokens)
        seed = sampling_seed(params.get("seed"), config)
        asked = self._writer.own_params(params, config)
        continuous = self.batcher is not None and seed is None and asked["logprobs"] is None
        return GenerationParams(
            params=own,
            # Not max_length, which limits the whole text: the tokenizer would truncate the end of the prompt.
            preprocess={key: value for key, value in plain.preprocess.items() if key != "max_length"},
            forward=forward,
            postprocess=plain.postprocess,
            config=config,
            prompt_limit=self._prompt_limit(config),
            equal_lengths=config.max_new_tokens is None or _depends_on_prompt(config),
            seed=seed,
            continuous=continuous and self.batcher is not None and self.batcher.supports(config),
            chat=chat,
            system=params.get("system"),
            tools=params.get("tools", ()),
            tool_calls=params.get("tool_calls", False),
            **asked,
        )

    def is_deterministic(self, params: GenerationParams) -> bool:
        """Return whether nothing is sampled, or only by a seed."""
        return not params.config.do_sample or params.seed is not None

    def prepare(self, value: Json, params: GenerationParams) -> PreparedRecord:
        """Return the prompt, or the chat in its template, truncated on the left where it is too long."""
        value, constraint = self._writer.take_constraint(value, params)
        prompt = self._prompt(parse_fields(TASKS[self.name], value), params)
        try:
            inputs = dict(self.pipe.preprocess(prompt, **params.preprocess))
        except jinja2.TemplateError as error:
            raise RecordError("wrong_type", f"The model's chat template rejects these messages: {error}") from error
        inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
        inputs["constraint"] = constraint
        if params.seed is not None:
            seeded = {"text": prompt} if isinstance(prompt, str) else {"messages": prompt.messages}
            inputs["record_seed"] = record_seed(params.seed, seeded)
        return self._truncate(inputs, params)

    def group(self, inputs: ModelInputs, params: GenerationParams) -> int:
        """Return -1 for continuous batches; else the length where only equal lengths share a batch, or 0."""
        if self._runs_continuously(inputs, params):
            return _CONTINUOUS
        return token_count(inputs) if params.equal_lengths else 0

    def tokens(self, inputs: ModelInputs, params: GenerationParams) -> int:
        """Return prompt and new tokens together: the size of the cache."""
        config = params.config
        return token_count(inputs) + int(config.max_new_tokens or config.max_length)

    def budget(self, usual: TokenBudget, group: int) -> TokenBudget:
        """Return the budget of a batch: without limit for continuous batching, which schedules by itself."""
        return TokenBudget(MAX_TOKENS, MAX_TOKENS, calibrated=True) if group == _CONTINUOUS else usual

    def forward(self, batch: Sequence[ModelInputs], params: GenerationParams, monitor: RunMonitor) -> list[RowOutput]:
        """Generate for one batch; the monitor is called at every token."""
        if self.batcher and self._runs_continuously(batch[0], params):
            found = self._generate_continuously(self.batcher, batch, params, monitor)
            if found is not None:
                return found
        outputs, written = self._writer.generate(
            lambda more: self.pipe.forward(collate(batch, self.pad_id, "left"), **{**params.forward, **more}),
            batch,
            params,
            monitor,
        )
        return [
            _row(outputs, number, token_count(inputs), one)
            for number, (inputs, one) in enumerate(zip(batch, written, strict=True))
        ]

    def trial(self, batch: Sequence[ModelInputs], params: GenerationParams) -> list[list[torch.Tensor]]:
        """Return for each prompt the logits of its next tokens."""
        names = ("input_ids", "attention_mask")
        joined = collate([{name: inputs[name] for name in names} for inputs in batch], self.pad_id, "left")
        on_device = {name: tensor.to(self.pipe.model.device) for name, tensor in joined.items()}
        return next_token_logits(self.pipe.model, on_device, len(batch))

    def _runs_continuously(self, inputs: ModelInputs, params: GenerationParams) -> bool:
        return self.batcher is not None and params.continuous and inputs["constraint"] is None

    def _generate_continuously(
        self, batcher: Batcher, batch: Sequence[ModelInputs], params: GenerationParams, monitor: RunMonitor
    ) -> list[RowOutput] | None:
        """Generate in continuous batches, which are disabled after a failure; return None if one text fails alone.

        Raises:
            Exception: several failed; the caller runs them again, in smaller batches.
        """
        prompts = [inputs["input_ids"][0].tolist() for inputs in batch]
        try:
            found = batcher.generate(prompts, params.config, monitor)
        except Cancelled:
            raise
        except Exception as error:  # static batches may work whatever the error is
            if not is_device_lost(error):
                count_fallback("continuous_batching", error)
                self.batcher = None
                if len(batch) == 1:  # the caller would not run it again
                    return None
            raise
        return [
            {
                "generated_sequence": torch.tensor([[prompt + new]]),
                "input_ids": torch.tensor([prompt]),
                "prompt_text": inputs["prompt_text"],
                "written": Written([NewText.read(new, params.config, self.tokenizer)]),
            }
            for inputs, prompt, new in zip(batch, prompts, found, strict=True)
        ]

    def postprocess(self, rows: Sequence[RowOutput], record: PreparedRecord, params: GenerationParams) -> Json:
        """Return the texts, with token counts where the job asks for them.

        Raises:
            RecordError: `incomplete_output`, a text ended before it met the job's constraint.
        """
        texts = constrained_texts(rows[0]["written"], params)
        if texts is None:
            texts = self._texts(rows, record, params)
        if params.tool_calls:
            texts = self._with_calls(texts, rows[0], params)
        return with_details(rows[0], texts, params)

    def _texts(self, rows: Sequence[RowOutput], record: PreparedRecord, params: GenerationParams) -> Any:
        """Return the texts as the pipeline does; as they are, where the tokenizer's response template does not fit."""
        try:
            return super().postprocess(rows, record, params)
        except (ValueError, KeyError):
            if not getattr(self.tokenizer, "response_template", None):
                raise
        written = [new.tokens[: new.length] for new in rows[0]["written"].texts]
        return [{"generated_text": self.tokenizer.decode(one, skip_special_tokens=True)} for one in written]

    def _with_calls(self, texts: Sequence[Json], row: RowOutput, params: GenerationParams) -> list[Json]:
        """Return the texts, each with the calls of tools that it holds."""
        prompt = row["input_ids"][0].tolist()
        replies = [self._calls.read(prompt, new.tokens[: new.length], params.tools) for new in row["written"].texts]
        return [
            {"generated_text": reply.content, "tool_calls": reply.calls, **reply.reasoning}
            if reply
            else {**text, "tool_calls": []}
            for text, reply in zip(texts, replies, strict=True)
        ]

    def _with_stop_strings(self, params: dict[str, Json]) -> dict[str, Any]:
        """Return parameters with stop sequences as `generate` takes them; earlier pipelines stop at their tokens."""
        stops = params.get("stop_sequence")
        if stops is None:
            return params
        rest = {name: value for name, value in params.items() if name != "stop_sequence"}
        return {**rest, "stop_strings": [stops] if isinstance(stops, str) else stops, "tokenizer": self.tokenizer}

    def _prompt_limit(self, config: Any) -> int | None:
        if config.max_new_tokens is not None:
            return None if self.limit is None else self.limit - config.max_new_tokens
        if self.limit is not None and config.max_length > self.limit:
            raise ModelError("bad_param", f"max_length must be at most {self.limit}, the model's context length.")
        return int(config.max_length) - 1

    def _is_chat(self, params: Mapping[str, Json]) -> bool:
        chat = is_chat(params)
        if chat and not self.tokenizer.chat_template:
            raise ModelError(
                "no_chat_template",
                "This model has no chat template, so texts cannot be asked as messages. Submit with --no-chat, which "
                "continues them as raw text, or use a chat model.",
            )
        return chat

    def _prompt(self, fields: Mapping[str, Json], params: GenerationParams) -> str | Chat:
        """Return a record's text as it is, or its chat: the record's own messages, or its text as one."""
        if "text" in fields:
            text = check_text(fields["text"])
            if not params.chat:
                return text
            messages = user_message(text)
        else:
            messages = parse_messages(fields)
        if not self.tokenizer.chat_template:
            raise RecordError(
                "no_chat_template",
                "This model has no chat template, so it cannot take messages. Send text, or use a chat model.",
            )
        if params.tools:
            self._calls.check(params.tools)
        return Chat(with_system_message(messages, params.system))

    def _truncate(self, inputs: ModelInputs, params: GenerationParams) -> PreparedRecord:
        limit = params.prompt_limit
        if limit is None or token_count(inputs) <= limit:
            return PreparedRecord([inputs])
        if params.config.max_new_tokens is None:
            raise RecordError(
                "too_long",
                f"The prompt has {token_count(inputs)} tokens, and max_length={limit + 1} includes them, which leaves "
                "none to generate. Use max_new_tokens instead.",
            )
        return PreparedRecord([truncate_left(inputs, limit, self.tokenizer.bos_token_id)], truncated=True)


def _row(outputs: Mapping[str, Any], number: int, length: int, written: Written) -> RowOutput:
    """Return one record of the batch, without the padding before its prompt and after its longest text."""
    padded = outputs["input_ids"].shape[1]
    return {
        "generated_sequence": outputs["generated_sequence"][
            number : number + 1, :, padded - length : padded + longest(written.texts)
        ],
        "input_ids": outputs["input_ids"][number : number + 1, padded - length :],
        "prompt_text": outputs["prompt_text"][number],
        "written": written,
    }


def _depends_on_prompt(config: Any) -> bool:
    return any(getattr(config, name, noop) not in (None, noop) for name, noop in _PROMPT_DEPENDENT.items())
