"""Text generation through the pipeline: prompts and chats, left-padded batches, seeds, and a way out in the middle.

A record's text is what it would be alone in its batch. Padding on the left hides behind the attention mask; settings
that count tokens or look back at the prompt see the padding all the same, so under them only prompts of equal length
share a batch.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import torch
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers import pipelines as hf
from transformers.utils.chat_template_utils import Chat

from common.errors import Cancelled, ModelError, RecordError
from common.params import check_params
from common.records import Json
from common.task_params import TASK_PARAMS
from common.tasks import TASKS
from workers.inference.core.device_errors import is_device_lost
from workers.inference.core.runner import RunMonitor
from workers.inference.core.token_budget import MAX_TOKENS, TokenBudget
from workers.inference.generation.continuous_batching import ContinuousBatcher, try_continuous_batching
from workers.inference.generation.limits import apply_token_limit
from workers.inference.generation.seeded_sampling import DISABLED_WARPERS, SeededSampler, logits_warpers, record_seed
from workers.inference.generation.token_callback import CancelCriteria
from workers.inference.models.batch_invariance import next_token_logits
from workers.inference.tasks.pipeline_task import PipelineParams, PipelineTask, PreparedRecord, RowOutput
from workers.inference.text.collate import collate
from workers.inference.text.fields import parse_fields, parse_messages
from workers.inference.text.tokenization import check_text
from workers.inference.text.truncation import ModelInputs, token_count, truncate_left

logger = logging.getLogger(__name__)

#: Settings that count or look back at tokens in front of the new ones, and their values that do nothing.
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
class GenerationSettings(PipelineParams):
    """A job's parameters, and what they come to together with the model's own configuration."""

    config: Any = None  #: the generation configuration that `generate` will use
    prompt_limit: int | None = None  #: the longest prompt, in tokens
    equal_lengths: bool = False  #: whether only prompts of equal length may share a batch
    seed: int | None = None
    usage: bool = False  #: whether outputs say how many tokens they took, and why they ended


class TextGeneration(PipelineTask[GenerationSettings]):
    """Text that goes on from a prompt, or the next message of a chat."""

    name = "text-generation"
    pipeline_class = hf.TextGenerationPipeline
    auto_class = "AutoModelForCausalLM"
    generates = True

    def __init__(self, pipe: Any) -> None:
        """Take the pipeline; on a GPU, try whether its model generates in continuous batches."""
        super().__init__(pipe)
        self.continuous: ContinuousBatcher | None = None
        if pipe.model.device.type == "cuda":
            self.continuous = try_continuous_batching(pipe.model)

    def parse_params(self, params: Mapping[str, Json]) -> GenerationSettings:
        """Return the job's parameters; nothing is left to `generate` to refuse."""
        params = check_params(self.name, TASK_PARAMS[self.name], params)
        seed, usage = params.pop("seed", None), params.pop("usage", False)
        plain = self._split_params(params)
        forward = self._with_default_length(plain.forward)
        config = self._config(forward)
        apply_token_limit(self.name, params, self.pipe.model.generation_config, self.max_new_tokens)
        if seed is not None and config.do_sample and (config.num_beams or 1) > 1:
            raise ModelError("bad_param", "seed does not go with beams: leave out seed or num_beams.")
        return GenerationSettings(
            params=params,
            # The limit on the whole text is ours to keep: the tokenizer would cut the prompt's end.
            preprocess={key: value for key, value in plain.preprocess.items() if key != "max_length"},
            forward=forward,
            postprocess=plain.postprocess,
            config=config,
            prompt_limit=self._prompt_limit(config),
            equal_lengths=config.max_new_tokens is None or _depends_on_prompt(config),
            seed=seed if config.do_sample else None,
            usage=usage,
        )

    def is_deterministic(self, parsed_params: GenerationSettings) -> bool:
        """Return whether nothing is sampled, or by a seed."""
        return not parsed_params.config.do_sample or parsed_params.seed is not None

    def prepare(self, value: Json, parsed_params: GenerationSettings) -> PreparedRecord:
        """Return the prompt, or the chat as its template writes it, cut from the front where it is too long."""
        fields = parse_fields(TASKS[self.name], value)
        prompt = check_text(fields["text"]) if "text" in fields else self._chat(fields)
        try:
            inputs = dict(self.pipe.preprocess(prompt, **parsed_params.preprocess))
        except jinja2.TemplateError as error:
            raise RecordError("wrong_type", f"The model's chat template refuses these messages: {error}") from error
        inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
        if parsed_params.seed is not None:
            inputs["record_seed"] = record_seed(parsed_params.seed, fields)
        return self._truncate(inputs, parsed_params)

    def group(self, inputs: ModelInputs, parsed_params: GenerationSettings) -> int:
        """Return the length where only equal lengths go together, else 0."""
        return token_count(inputs) if parsed_params.equal_lengths else 0

    def tokens(self, inputs: ModelInputs, parsed_params: GenerationSettings) -> int:
        """Return prompt and new tokens together: what the cache will hold."""
        config = parsed_params.config
        return token_count(inputs) + int(config.max_new_tokens or config.max_length)

    def budget(self, usual: TokenBudget, parsed_params: GenerationSettings) -> TokenBudget:
        """Return what a batch may hold: everything, where it is for the continuous loop to say what runs together."""
        return TokenBudget(MAX_TOKENS, MAX_TOKENS, calibrated=True) if self._find_batcher(parsed_params) else usual

    def forward(
        self, batch: Sequence[ModelInputs], parsed_params: GenerationSettings, monitor: RunMonitor
    ) -> list[RowOutput]:
        """Generate for one batch; the watch is told about every token."""
        continuous = self._find_batcher(parsed_params)
        if continuous:
            return self._generate_continuously(continuous, batch, parsed_params, monitor)
        kwargs: dict[str, Any] = {
            **parsed_params.forward,
            "stopping_criteria": StoppingCriteriaList([CancelCriteria(monitor)]),
        }
        if parsed_params.seed is not None:
            seeds = [inputs["record_seed"] for inputs in batch]
            choice = SeededSampler(
                logits_warpers(parsed_params.config), seeds, parsed_params.config.num_return_sequences or 1
            )
            kwargs |= {**DISABLED_WARPERS, "logits_processor": LogitsProcessorList([choice])}
        outputs = self.pipe.forward(collate(batch, self.pad_id, "left"), **kwargs)
        return [
            self._row(outputs, number, token_count(inputs), parsed_params.config) for number, inputs in enumerate(batch)
        ]

    def trial(self, batch: Sequence[ModelInputs], parsed_params: GenerationSettings) -> list[list[torch.Tensor]]:
        """Return for each prompt the logits of its next tokens."""
        names = ("input_ids", "attention_mask")
        joined = collate([{name: inputs[name] for name in names} for inputs in batch], self.pad_id, "left")
        on_device = {name: tensor.to(self.pipe.model.device) for name, tensor in joined.items()}
        return next_token_logits(self.pipe.model, on_device, len(batch))

    def _find_batcher(self, parsed_params: GenerationSettings) -> ContinuousBatcher | None:
        if self.continuous is None or parsed_params.seed is not None:
            return None
        return self.continuous if self.continuous.supports(parsed_params.config) else None

    def _generate_continuously(
        self,
        continuous: ContinuousBatcher,
        batch: Sequence[ModelInputs],
        parsed_params: GenerationSettings,
        monitor: RunMonitor,
    ) -> list[RowOutput]:
        """Generate in continuous batches; if they fail, there are none from then on.

        Raises:
            Exception: they failed; the batch is to be run again, in smaller ones.
        """
        prompts = [inputs["input_ids"][0].tolist() for inputs in batch]
        try:
            found = continuous.generate(prompts, parsed_params.config, monitor)
        except Cancelled:
            raise
        except Exception as error:  # whatever the loop fails of, static batches may do
            if not is_device_lost(error):
                logger.warning("text-generation goes on in static batches", exc_info=True)
                self.continuous = None
            raise
        return [
            {
                "generated_sequence": torch.tensor([[prompt + new]]),
                "input_ids": torch.tensor([prompt]),
                "prompt_text": inputs["prompt_text"],
                "written": [self._count_new_tokens(new, parsed_params.config)],
            }
            for inputs, prompt, new in zip(batch, prompts, found, strict=True)
        ]

    def finish(self, rows: Sequence[RowOutput], prepared: PreparedRecord, parsed_params: GenerationSettings) -> Json:
        """Return the texts, with their counts of tokens where they are asked for."""
        texts = super().finish(rows, prepared, parsed_params)
        if parsed_params.usage:
            asked = int(rows[0]["input_ids"].shape[1])
            for text, (written, ended) in zip(texts, rows[0]["written"], strict=True):
                reason = "stop" if ended else "length"
                text |= {"prompt_tokens": asked, "completion_tokens": written, "finish_reason": reason}
        return texts

    def _with_default_length(self, forward: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings with a default length that leaves half the model's positions to the prompt.

        Raises:
            ModelError: `bad_param`, the job itself asks for more tokens than the model has positions.
        """
        wanted = self._config(forward).max_new_tokens
        if wanted is None or self.limit is None or wanted < self.limit:
            return dict(forward)
        if "max_new_tokens" in forward:
            raise ModelError("bad_param", f"max_new_tokens must be below {self.limit}, all that the model takes.")
        return {**forward, "max_new_tokens": self.limit // 2}

    def _config(self, forward: Mapping[str, Any]) -> Any:
        try:
            kwargs = self.pipe._prepare_generate_kwargs(dict(forward))
            config, _ = self.pipe.model._prepare_generation_config(None, **kwargs)
            config.validate()
            if config.do_sample:
                logits_warpers(config)
        except (ValueError, TypeError) as error:
            raise ModelError("bad_param", f"text-generation does not take these parameters: {error}") from error
        return config

    def _prompt_limit(self, config: Any) -> int | None:
        if config.max_new_tokens is not None:
            return None if self.limit is None else self.limit - config.max_new_tokens
        if self.limit is not None and config.max_length > self.limit:
            raise ModelError("bad_param", f"max_length must be at most {self.limit}, which is all the model takes.")
        return int(config.max_length) - 1

    def _chat(self, fields: Mapping[str, Json]) -> Chat:
        messages = parse_messages(fields)
        if not self.tokenizer.chat_template:
            raise RecordError(
                "no_chat_template",
                "This model has no chat template: it was not made for messages. Send text, or take a chat model.",
            )
        return Chat(messages)

    def _truncate(self, inputs: ModelInputs, parsed_params: GenerationSettings) -> PreparedRecord:
        limit = parsed_params.prompt_limit
        if limit is None or token_count(inputs) <= limit:
            return PreparedRecord([inputs])
        if parsed_params.config.max_new_tokens is None:
            raise RecordError(
                "too_long",
                f"The prompt has {token_count(inputs)} tokens, and max_length={limit + 1} counts them: "
                "no room is left for new ones. Say max_new_tokens instead.",
            )
        return PreparedRecord([truncate_left(inputs, limit, self.tokenizer.bos_token_id)], truncated=True)

    def _row(self, outputs: Mapping[str, Any], number: int, length: int, config: Any) -> RowOutput:
        """Take one record out of the batch: without the padding before it, nor that behind its last text."""
        padded = outputs["input_ids"].shape[1]
        copies = outputs["generated_sequence"][number, :, padded - length :]
        written = [self._count_new_tokens(copy[length:].tolist(), config) for copy in copies]
        longest = max(count for count, _ in written)
        return {
            "generated_sequence": copies[None, :, : length + longest],
            "input_ids": outputs["input_ids"][number : number + 1, padded - length :],
            "prompt_text": outputs["prompt_text"][number],
            "written": written,
        }

    def _count_new_tokens(self, tokens: list[int], config: Any) -> tuple[int, bool]:
        """Return how many new tokens are the record's own, and whether it ended: then it is filled up for the batch."""
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        end = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
        if not self._stopped(tokens[:end], config):
            return min(end + 1, len(tokens)), end < len(tokens)
        while end and tokens[end - 1] == config.pad_token_id:
            end -= 1
        return end, True

    def _stopped(self, tokens: list[int], config: Any) -> bool:
        return bool(config.stop_strings) and any(stop in self.tokenizer.decode(tokens) for stop in config.stop_strings)


def _depends_on_prompt(config: Any) -> bool:
    return any(getattr(config, name, idle) not in (None, idle) for name, idle in _PROMPT_DEPENDENT.items())
