"""Questions about images: visual question answering, in the form of transformers 4, and document question answering."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Annotated, Any

import msgspec
from transformers import AutoImageProcessor, GenerationConfig, Pipeline
from transformers import pipelines as hf
from transformers.image_utils import load_image
from transformers.pipelines.document_question_answering import ModelType

from common.distribution import install_command
from common.errors import ModelError, RecordError
from common.records import FileInput, Json
from common.task_params import ANSWER_GENERATE_PARAMS
from common.tasks import TASKS
from workers.inference.generation.limits import apply_token_limit
from workers.inference.generation.resolved_config import with_default_length
from workers.inference.loading.loader import ModelSource, load_processor, load_tokenizer
from workers.inference.tasks.images import ImageTask
from workers.inference.tasks.pipeline_task import PipelineParams, PreparedRecord, RowOutput
from workers.inference.tasks.processor_runner import IMAGE_PROCESSOR, ProcessorRunner
from workers.inference.text.fields import parse_fields
from workers.inference.text.truncation import ModelInputs, input_token_limit
from workers.models.file_references import PROCESSOR_CONFIGS


class VisualQuestionAnsweringPipeline(Pipeline):  # type: ignore[misc]
    """The pipeline that transformers 5 removed: the model classifies answers (ViLT) or generates them (BLIP)."""

    _load_image_processor = True
    _load_tokenizer = True
    _pipeline_calls_generate = True
    _default_generation_config = GenerationConfig(max_new_tokens=256)
    _non_generation_params = ("top_k",)

    def _sanitize_parameters(self, top_k: int | None = None) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        return {}, {}, {} if top_k is None else {"top_k": top_k}

    def preprocess(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tokens of the question and the pixels of the image, each of shape (1, ...)."""
        pixels = self.image_processor(images=load_image(inputs["image"]), return_tensors="pt").to(self.dtype)
        return {**self.tokenizer(inputs["question"], return_tensors="pt"), **pixels}

    def _forward(self, model_inputs: Mapping[str, Any], **generate_kwargs: Any) -> dict[str, Any]:
        if not self.model.can_generate():
            return {"logits": self.model(**model_inputs).logits}
        kwargs = self._prepare_generate_kwargs(generate_kwargs)
        return {"sequences": self.model.generate(**model_inputs, **kwargs)}

    def postprocess(self, model_outputs: Mapping[str, Any], top_k: int = 5) -> list[dict[str, Any]]:
        """Return the likeliest answers with their scores, or the generated answer without one."""
        if "sequences" in model_outputs:
            texts = self.tokenizer.batch_decode(model_outputs["sequences"], skip_special_tokens=True)
            return [{"answer": text.strip()} for text in texts]
        probabilities = model_outputs["logits"][0].sigmoid()
        scores, ids = probabilities.topk(min(top_k, len(probabilities)))
        names = self.model.config.id2label
        return [{"score": score, "answer": names[id]} for score, id in zip(scores.tolist(), ids.tolist(), strict=True)]


class QuestionTask(ImageTask):
    """A question about an image, that of the record or of the job."""

    needs_tokenizer = True
    own_params = frozenset({"question", *ANSWER_GENERATE_PARAMS})

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        self.limit = input_token_limit(pipe.model, pipe.tokenizer)
        if self.limit is not None:  # the length of the windows of a document
            self.tokenizer.model_max_length = self.limit

    def parse_params(self, params: Mapping[str, Json]) -> PipelineParams:
        """Return the job's parameters; those of `generate` only for a model that generates."""
        parsed = super().parse_params(params)
        given = {name: value for name, value in parsed.params.items() if name in ANSWER_GENERATE_PARAMS}
        if not self.pipe.model.can_generate():
            if given:
                raise ModelError("bad_param", f"{min(given)} is for models that generate text; this one does not.")
            return parsed
        apply_token_limit(self.name, given, self.pipe.model.generation_config, self.max_new_tokens)
        forward = with_default_length(self.name, self.pipe, {**parsed.forward, **given}, self.limit)
        return replace(parsed, forward=forward)


class VisualQuestionAnswering(QuestionTask):
    """Answers to a question about an image."""

    name = "visual-question-answering"
    pipeline_class = VisualQuestionAnsweringPipeline
    auto_classes = ("AutoModelForVisualQuestionAnswering",)

    def preprocess(self, media: Any, fields: Mapping[str, Json], params: PipelineParams) -> PreparedRecord:
        """Return the image and its question, ready to run."""
        asked = {"image": media, "question": self.question(fields, params)}
        return PreparedRecord(self.preprocessed(asked, params.preprocess))


class DocumentQuestionAnswering(QuestionTask):
    """The words of a document that answer a question, found by the model, or generated (Donut)."""

    name = "document-question-answering"
    pipeline_class = hf.DocumentQuestionAnsweringPipeline
    auto_classes = ("AutoModelForDocumentQuestionAnswering", "AutoModelForImageTextToText")
    per_record_inputs = ("p_mask", "word_ids", "words", "is_last")

    @classmethod
    def load_parts(cls, source: ModelSource) -> dict[str, Any]:
        """Return the tokenizer, and the image processor if the model has one: LayoutLM reads words and boxes alone."""
        parts = {"tokenizer": load_tokenizer(source)}
        if any((source.directory / name).exists() for name in PROCESSOR_CONFIGS):
            parts[IMAGE_PROCESSOR.argument] = load_processor(AutoImageProcessor, source, IMAGE_PROCESSOR.name)
        return parts

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        self._generates = pipe.model_type == ModelType.VisionEncoderDecoder
        self._reads_text = getattr(pipe.image_processor, "apply_ocr", False)

    def prepare(self, value: Json, params: PipelineParams) -> PreparedRecord:
        """Return the document, an image or its words, with its question."""
        if isinstance(value, FileInput):
            return super().prepare(value, params)
        fields = parse_fields(TASKS[self.name], value)
        return super().prepare(value, params) if "image" in fields else self.preprocess(None, fields, params)

    def preprocess(self, media: Any, fields: Mapping[str, Json], params: PipelineParams) -> PreparedRecord:
        """Return the windows of the document, ready to run."""
        document: dict[str, Any] = {"question": self.question(fields, params)}
        if media is not None:
            document["image"] = media
        if "word_boxes" in fields:
            document["word_boxes"] = parse_word_boxes(fields["word_boxes"])
        elif not self._generates:
            _check_tesseract()
        if not self._generates:
            self._check_question(document["question"], params.preprocess)
        if self._reads_text:
            self.pipe.image_processor.apply_ocr = "word_boxes" not in fields
        return PreparedRecord(self.preprocessed(document, params.preprocess))

    def _check_question(self, question: str, options: Mapping[str, Any]) -> None:
        """Refuse a question that leaves no room for a window of the document: the tokenizer would panic."""
        size = options.get("max_seq_len") or self.tokenizer.model_max_length
        overlap = options.get("doc_stride") or min(size // 2, 256)
        tokens = len(self.tokenizer.tokenize(question))
        most = size - overlap - self.tokenizer.num_special_tokens_to_add(pair=True) - 1
        if tokens > most:
            raise RecordError("too_long", f"The question has {tokens} tokens; windows of {size} leave room for {most}.")

    def row(self, outputs: Mapping[str, Any], number: int, inputs: ModelInputs) -> RowOutput:
        """Take one window out of the batch, as a dictionary: `postprocess` replaces its parts."""
        return dict(super().row(outputs, number, inputs))


_Box = Annotated[list[Annotated[int, msgspec.Meta(ge=0, le=1000)]], msgspec.Meta(min_length=4, max_length=4)]
_WordBoxes = Annotated[list[tuple[str, _Box]], msgspec.Meta(min_length=1)]


def parse_word_boxes(value: Json) -> list[tuple[str, list[int]]]:
    """Return the words of a document, each with its box [left, top, right, bottom] from 0 to 1000.

    Raises:
        RecordError: `wrong_type`.
    """
    try:
        return msgspec.convert(value, _WordBoxes)
    except msgspec.ValidationError as error:
        raise RecordError(
            "wrong_type",
            "word_boxes must be a list of words with boxes of numbers from 0 to 1000, "
            f'[["total", [80, 90, 160, 110]]]: {error}.',
        ) from error


def _check_tesseract() -> None:
    """Refuse an image whose words nothing can find here."""
    if find_spec("pytesseract") is None or shutil.which("tesseract") is None:
        raise RecordError(
            "missing_library",
            "This worker cannot read the text of an image: that needs the program tesseract, and pytesseract "
            f"({install_command('worker,documents')}). Or send word_boxes with the record.",
        )


class VisualQuestionRunner(ProcessorRunner):
    """Questions about images."""

    tasks = (VisualQuestionAnswering, DocumentQuestionAnswering)
