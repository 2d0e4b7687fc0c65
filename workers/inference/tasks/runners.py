"""The table of runners: from a task's name to the class that runs it, imported when first needed.

Other distributions add rows by entry points of the group `common.tasks.RUNNER_ENTRY_POINTS`: the entry point's name is
the task, its value `module:Class`. Our own rows win over entry points of the same name.
"""

from importlib import import_module
from importlib.metadata import entry_points

from common.errors import ModelError
from common.jobs import TRANSFORMERS
from common.tasks import ALIASES, RUNNER_ENTRY_POINTS, translation_languages
from workers.inference.core.runner import Runner

_PIPELINE = "workers.inference.tasks.pipeline_runner:PipelineRunner"
_IMAGES = "workers.inference.tasks.images:ImageRunner"
_AUDIO = "workers.inference.tasks.audio:AudioRunner"
_SEQ2SEQ = "workers.inference.tasks.seq2seq:Seq2SeqRunner"

#: Task to `module:Class`.
RUNNERS = {
    "fill-mask": _PIPELINE,
    "text-classification": _PIPELINE,
    "token-classification": _PIPELINE,
    "zero-shot-classification": _PIPELINE,
    "feature-extraction": _PIPELINE,
    "table-question-answering": _PIPELINE,
    "text-generation": _PIPELINE,
    "embedding": "workers.inference.tasks.embedding:EmbeddingRunner",
    "rerank": "workers.inference.tasks.rerank:RerankRunner",
    "sentence-similarity": "workers.inference.tasks.sentence_similarity:SentenceSimilarityRunner",
    "sparse-embedding": "workers.inference.tasks.module_runners:SparseEmbeddingRunner",
    "multi-vector-embedding": "workers.inference.tasks.module_runners:MultiVectorRunner",
    "translation": _SEQ2SEQ,
    "summarization": _SEQ2SEQ,
    "text2text-generation": _SEQ2SEQ,
    "image-classification": _IMAGES,
    "zero-shot-image-classification": _IMAGES,
    "object-detection": _IMAGES,
    "image-segmentation": _IMAGES,
    "zero-shot-object-detection": _IMAGES,
    "mask-generation": _IMAGES,
    "keypoint-matching": _IMAGES,
    "image-text-to-text": "workers.inference.tasks.multimodal_generation:MultimodalRunner",
    "visual-question-answering": "workers.inference.tasks.visual_questions:VisualQuestionRunner",
    "document-question-answering": "workers.inference.tasks.visual_questions:VisualQuestionRunner",
    "any-to-any": "workers.inference.tasks.multimodal_generation:MultimodalRunner",
    "decision": "workers.inference.tasks.decision:DecisionRunner",
    "text-to-audio": "workers.inference.tasks.text_to_audio:TextToAudioRunner",
    "video-classification": "workers.inference.tasks.video:VideoRunner",
    "depth-estimation": _IMAGES,
    "image-feature-extraction": _IMAGES,
    "audio-classification": _AUDIO,
    "zero-shot-audio-classification": _AUDIO,
    "automatic-speech-recognition": _AUDIO,
    "question-answering": "workers.inference.tasks.question_answering:QuestionAnsweringRunner",
}

#: The same by an engine.
ENGINE_RUNNERS = dict.fromkeys(
    ("text-generation", "image-text-to-text"), "workers.inference.tasks.engine_runner:EngineRunner"
)


def find_runner(task: str, engine: str = TRANSFORMERS) -> type[Runner]:
    """Return the runner class of a task name, alias, `translation_xx_to_yy` or entry point.

    Args:
        task: the name.
        engine: what generates text; another than `transformers` only for a task of `ENGINE_RUNNERS`.

    Raises:
        ModelError: `unknown_task`, no runner of that name; `bad_runner`, an entry point names something else.
        ImportError: the runner needs a library that is not installed.
    """
    name = _row(task)
    if engine != TRANSFORMERS:
        return _load(ENGINE_RUNNERS[name])
    if name in RUNNERS:
        return _load(RUNNERS[name])
    for point in entry_points(group=RUNNER_ENTRY_POINTS, name=task):
        return _load(point.value)
    raise ModelError(
        "unknown_task",
        f"This worker has no runner for the task {task!r}. If another distribution brings it, "
        f"install it here too (an entry point of the group {RUNNER_ENTRY_POINTS}).",
    )


def needs_model(task: str) -> bool:
    """Whether a task needs a model, as far as that is known without its runner: only that tells for an entry point."""
    return _row(task) in RUNNERS


def _row(task: str) -> str:
    return "translation" if translation_languages(task) else ALIASES.get(task, task)


def _load(target: str) -> type[Runner]:
    module, _, name = target.partition(":")
    found = getattr(import_module(module), name, None)
    if not (isinstance(found, type) and issubclass(found, Runner)):
        raise ModelError(
            "bad_runner", f"{target} is not a runner: expected a subclass of workers.inference.core.runner.Runner."
        )
    return found
