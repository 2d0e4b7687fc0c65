"""Text generation from images and text together: prompts and chats of vision-language models.

An image of a chat is the record's file, or bytes in its messages. Workers open no address that a message names.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar, cast

import jinja2
from transformers import pipelines as hf
from transformers.pipelines import any_to_any
from transformers.utils.chat_template_utils import Chat

from common.chat import with_system_message
from common.errors import ModelError, RecordError
from common.params import check_params
from common.records import FileInput, Json
from common.task_params import GENERATE_PARAMS, TASK_PARAMS
from common.tasks import TASKS
from workers.inference.core.runner import RunMonitor
from workers.inference.generation.limits import apply_token_limit
from workers.inference.generation.new_text import longest
from workers.inference.generation.resolved_config import resolve_generation_config, with_default_length
from workers.inference.generation.seeded_sampling import record_seed, sampling_seed
from workers.inference.tasks.chat_media import ChatMedia
from workers.inference.tasks.generated_texts import OWN_PARAMS, TextParams, TextWriter, constrained_texts, with_details
from workers.inference.tasks.images import decode_image
from workers.inference.tasks.pipeline_task import PipelineParams, PreparedRecord, RowOutput
from workers.inference.tasks.processor_runner import PROCESSOR, ProcessorRunner, ProcessorTask
from workers.inference.text.fields import parse_fields, parse_messages
from workers.inference.text.tokenization import check_text
from workers.inference.text.truncation import ModelInputs, input_token_limit, token_count

#: Prepared inputs that are for the writer of texts, not for the model.
_FOR_WRITER = ("constraint", "record_seed")


class MultimodalGeneration(ProcessorTask):
    """Text that answers a prompt with files, or the next message of a chat with files."""

    processor = PROCESSOR
    generates = True
    #: What the pipeline takes for a chat.
    chat_class: ClassVar[Any] = Chat

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        self.limit = input_token_limit(pipe.model, pipe.tokenizer)
        self._writer = TextWriter(pipe.model, pipe.tokenizer)
        self._has_template = bool(getattr(pipe.processor, "chat_template", None))

    @property
    @abstractmethod
    def media(self) -> ChatMedia:
        """What messages may hold."""

    def parse_params(self, params: Mapping[str, Json]) -> TextParams:
        """Return the job's parameters, checked so that `generate` rejects none.

        Raises:
            ModelError: `bad_param`; `no_chat_template`, texts are asked as chats and the model has no template.
        """
        checked = check_params(self.name, TASK_PARAMS[self.name], params)
        generate = {name: value for name, value in checked.items() if name in GENERATE_PARAMS}
        rest = {name: value for name, value in checked.items() if name not in OWN_PARAMS | {"text"} | generate.keys()}
        plain = self._split_params({**rest, "generate_kwargs": generate, "return_full_text": False})
        kwargs = with_default_length(self.name, self.pipe, plain.forward["generate_kwargs"], self.limit)
        config = resolve_generation_config(self.name, self.pipe, kwargs)
        apply_token_limit(self.name, generate, self.pipe.model.generation_config, self.max_new_tokens)
        return TextParams(
            params=checked,
            preprocess=plain.preprocess,
            forward=kwargs,
            postprocess=plain.postprocess,
            config=config,
            seed=sampling_seed(checked.get("seed"), config),
            chat=self._is_chat(checked),
            **self._writer.own_params(checked, config),
        )

    def prepare(self, value: Json, params: PipelineParams) -> PreparedRecord:
        """Return the prompt or the chat with its files, prepared by the processor."""
        asked = cast("TextParams", params)
        value, constraint = self._writer.take_constraint(value, asked)
        blob = value.blob if isinstance(value, FileInput) else None
        fields = parse_fields(TASKS[self.name], value.input if isinstance(value, FileInput) else value)
        image = self._attached(blob, fields)
        prompt = self._prompt(fields, image, asked)
        try:
            [inputs] = self.preprocessed(prompt, asked.preprocess)
        except jinja2.TemplateError as error:
            raise RecordError("wrong_type", f"The model's chat template rejects these messages: {error}") from error
        inputs["constraint"] = constraint
        if asked.seed is not None:
            seeded = {**fields, "image": None if blob is None else hashlib.sha256(blob).hexdigest()}
            inputs["record_seed"] = record_seed(asked.seed, seeded)
        return PreparedRecord([inputs])

    def group(self, inputs: ModelInputs, params: PipelineParams) -> int:
        """Return a number that inputs of equal shapes share; none has it with lists, which cannot be joined."""
        alone = any(isinstance(value, list | tuple) for value in inputs.values())
        return id(inputs) if alone else super().group(inputs, params)

    def tokens(self, inputs: ModelInputs, params: PipelineParams) -> int:
        """Return prompt and new tokens together, the size of the cache, or those that the pixels count as."""
        config = cast("TextParams", params).config
        prompt = token_count(inputs) if "input_ids" in inputs else 0
        return max(super().tokens(inputs, params), prompt + int(config.max_new_tokens or config.max_length))

    def forward(self, batch: Sequence[ModelInputs], params: PipelineParams, monitor: RunMonitor) -> list[RowOutput]:
        """Generate for one batch of equal shapes; the monitor is called at every token."""
        asked = cast("TextParams", params)
        joined = {name: value for name, value in self.collate(batch).items() if name not in _FOR_WRITER}
        outputs, written = self._writer.generate(
            lambda more: self.pipe.forward(joined, generate_kwargs={**asked.forward, **more}), batch, asked, monitor
        )
        prompt = outputs["input_ids"].shape[1]
        return [
            {
                "generated_sequence": outputs["generated_sequence"][n : n + 1, ..., : prompt + longest(one.texts)],
                "input_ids": outputs["input_ids"][n : n + 1],
                "prompt_text": inputs["text"],
                "written": one,
            }
            for n, (inputs, one) in enumerate(zip(batch, written, strict=True))
        ]

    def postprocess(self, rows: Sequence[RowOutput], record: PreparedRecord, params: PipelineParams) -> Json:
        """Return the new texts, without the messages that they answer.

        Raises:
            RecordError: `incomplete_output`, a text ended before it met the job's constraint.
        """
        asked = cast("TextParams", params)
        texts = constrained_texts(rows[0]["written"], asked)
        if texts is None:
            given = super().postprocess(rows, record, params)
            texts = [{"generated_text": text["generated_text"]} for text in given]
        return with_details(rows[0], texts, asked)

    def _attached(self, blob: bytes | None, fields: Mapping[str, Json]) -> Any:
        """Return the decoded image of a record, None if it has none."""
        if blob is None and "image" in fields:
            blob = self.files.read(fields["image"])
        return None if blob is None else decode_image(blob)

    def _is_chat(self, params: Mapping[str, Json]) -> bool:
        """Return whether texts are asked as messages: if there is a chat template, unless the job says otherwise."""
        chat = bool(params.get("chat", self._has_template))
        if params.get("system") is not None and not chat:
            raise ModelError("bad_param", "system is the first message of a chat, and texts are not asked as one.")
        if chat and not self._has_template:
            raise ModelError(
                "no_chat_template",
                "This model's processor has no chat template, so texts cannot be asked as messages. Submit with "
                "-p chat=false, which continues them as raw text, or use a chat model.",
            )
        return chat

    def _prompt(self, fields: Mapping[str, Json], image: Any, params: TextParams) -> Any:
        """Return a record's chat, its text as one, or its text and image as they are."""
        if "messages" in fields:
            messages = parse_messages(fields)
            if not self._has_template:
                raise RecordError(
                    "no_chat_template",
                    "This model's processor has no chat template, so it cannot take messages. Send text instead.",
                )
        else:
            text = check_text(self.field(fields, params, "text"), "text")
            if not params.chat:
                return text if image is None else {"images": image, "text": text}
            messages = [{"role": "user", "content": [{"type": "text", "text": text}]}]
        return self.chat_class(self.media.place(self._with_system(messages, params), image))

    def _with_system(self, messages: list[dict[str, Json]], params: TextParams) -> list[dict[str, Json]]:
        """Return the messages after the job's system message, in parts as multimodal templates expect them."""
        found = with_system_message(messages, params.params.get("system"))
        if len(found) > len(messages):
            found[0]["content"] = [{"type": "text", "text": found[0]["content"]}]
        return found


class ImageTextToText(MultimodalGeneration):
    """Text about an image."""

    name = "image-text-to-text"
    pipeline_class = hf.ImageTextToTextPipeline
    auto_classes = ("AutoModelForImageTextToText",)
    media = ChatMedia({"image": decode_image})


class AnyToAny(MultimodalGeneration):
    """Text about images and audio, which come in messages."""

    name = "any-to-any"
    pipeline_class = hf.AnyToAnyPipeline
    chat_class = any_to_any.Chat
    auto_classes = ("AutoModelForMultimodalLM",)

    @cached_property
    def media(self) -> ChatMedia:
        """Images and audio, as far as the model's processor takes them."""
        decoders: dict[str, Any] = {}
        processor = self.pipe.processor
        if hasattr(processor, "image_processor"):
            decoders["image"] = decode_image
        if hasattr(processor, "feature_extractor"):
            from workers.inference.tasks.audio import decode_audio  # its libraries are in an extra of their own

            decoders["audio"] = partial(decode_audio, rate=int(processor.feature_extractor.sampling_rate))
        return ChatMedia(decoders)


class MultimodalRunner(ProcessorRunner):
    """A `transformers` pipeline that generates text from texts and files."""

    tasks = (ImageTextToText, AnyToAny)
