"""The table of tasks that `--task` accepts: fields, default models and chunk sizes.

`workers.inference` runs them; this table is what the producer knows. Default models and revisions are those that
transformers pins (`transformers/pipelines/__init__.py`, 5.23); the tasks of sentence-transformers, and those that
transformers 5 removed, have their own.
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points

from common.errors import RecordError, UsageError
from common.jobs import JobSpec
from common.output_types import OutputForm
from common.records import Json
from common.suggestions import did_you_mean
from common.task_outputs import output_form
from common.task_params import LOAD_PARAMS, TASK_PARAMS, Params

#: Other distributions add runners by entry points of this group, named after their task.
RUNNER_ENTRY_POINTS = "hugqueue.runners"

_TRANSLATION = re.compile(r"^translation_([a-z]{2,3})_to_([a-z]{2,3})$")


@dataclass(frozen=True, slots=True)
class Task:
    """What the producer knows about a task."""

    name: str
    summary: str
    fields: tuple[tuple[str, ...], ...] = (("text",),)  #: alternatives, each a set of required fields
    optional: tuple[str, ...] = ()
    model: str | None = None  #: default model
    revision: str | None = None  #: its pinned revision
    hint: str = ""  #: how to select columns that are not found
    chunk_records: int = 256  #: about a second or more of compute on a CPU
    media: tuple[str, ...] = ()  #: the media types of its files (`common.media_types`), and the names of their fields
    second_file: str | None = None  #: the field of another file of that type, which every record has besides

    @property
    def primary_field(self) -> str | None:
        """The field of a record that is a plain string; None if records must be objects."""
        return self.fields[0][0] if len(self.fields[0]) == 1 else None

    @property
    def reads_files(self) -> bool:
        """Whether its inputs are files, and a plain string names one."""
        return bool(self.media) and self.primary_field != "text"

    def file_fields(self, input: Json) -> tuple[str, ...]:
        """Return the fields of a record's input that name files."""
        if not isinstance(input, Mapping):
            return self.media if self.reads_files else ()
        return tuple(name for name in (*self.media, self.second_file) if name is not None and name in input)

    @property
    def params(self) -> Params | None:
        """The types of `-p` parameters by name; None for runners of other distributions."""
        return {**LOAD_PARAMS, **TASK_PARAMS[self.name]} if self.name in TASK_PARAMS else None

    @property
    def required_fields(self) -> str:
        """The required fields in words."""
        return " or ".join(" + ".join(names) for names in self.fields)

    def output_form(self, params: Mapping[str, Json]) -> OutputForm | None:
        """Return the form of an output under these parameters; None for runners of other distributions."""
        return output_form(self.name, params)

    def as_dict(self) -> dict[str, Json]:
        """Return the task for `--json`."""
        form = self.output_form({})
        return {
            "summary": self.summary,
            "fields": [list(names) for names in self.fields],
            "optional": list(self.optional),
            "params": None if self.params is None else {name: kind.description for name, kind in self.params.items()},
            "model": self.model,
            "revision": self.revision,
            "output": None if form is None else str(form),
        }

    def build_input(self, row: Mapping[str, Json]) -> Json:
        """Return the record's input: the text alone, or an object with the task's fields.

        Raises:
            RecordError: `missing_field`, if no alternative of required fields is complete.
        """
        for names in self.fields:
            if all(row.get(name) is not None for name in names):
                extra = tuple(name for name in self.optional if row.get(name) is not None)
                if names == (self.primary_field,) and not extra:
                    return row[names[0]]
                return {name: row[name] for name in (*names, *extra)}
        found = ", ".join(sorted(map(str, row))) or "none"
        raise RecordError("missing_field", f"{self.name} needs {self.required_fields}; the record has: {found}")


def _media_task(
    kind: str,
    name: str,
    summary: str,
    default: tuple[str, str],
    optional: tuple[str, ...] = (),
    *,
    instead: str | None = None,
    chunk_records: int = 64,
) -> Task:
    """Return a task over files of a kind; `instead` names a field that a record may have instead of a file."""
    fields = ((kind,),) if instead is None else ((kind,), (instead,))
    return Task(name, summary, fields, optional, *default, chunk_records=chunk_records, media=(kind,))


_VIT = ("google/vit-base-patch16-224", "3f49326")
_LABELS = ("candidate_labels", "hypothesis_template")

MEDIA_TASKS = (
    _media_task("image", "image-classification", "labels and scores for an image", _VIT),
    _media_task(
        "image",
        "zero-shot-image-classification",
        "scores for labels given with the image or by -p candidate_labels=",
        ("openai/clip-vit-base-patch32", "3d74acf"),
        _LABELS,
    ),
    _media_task(
        "image", "object-detection", "objects in an image and their boxes", ("facebook/detr-resnet-50", "1d5f47b")
    ),
    _media_task(
        "image", "image-segmentation", "segments of an image as masks", ("facebook/detr-resnet-50-panoptic", "d53b52a")
    ),
    _media_task(
        "image",
        "zero-shot-object-detection",
        "objects of labels given with the image or by -p candidate_labels=",
        ("google/owlvit-base-patch32", "cbc355f"),
        _LABELS[:1],
        chunk_records=16,
    ),
    Task(
        "keypoint-matching",
        "points of one image and the same points in another",
        (("image", "second_image"),),
        model="magic-leap-community/superglue_outdoor",
        revision="f4041f8",
        chunk_records=32,
        media=("image",),
        second_file="second_image",
    ),
    _media_task(
        "image",
        "mask-generation",
        "masks of everything in an image",
        ("facebook/sam-vit-huge", "87aecf0"),
        chunk_records=8,
    ),
    _media_task(
        "image",
        "image-text-to-text",
        "text that answers a prompt about an image, or continues a chat with images",
        ("HuggingFaceTB/SmolVLM-256M-Instruct", "7e3e67edbbed1bf9888184d9df282b700a323964"),
        ("text", "messages"),
        instead="messages",
        chunk_records=32,
    ),
    _media_task(
        "image",
        "visual-question-answering",
        "answers to a question about an image",
        ("dandelin/vilt-b32-finetuned-vqa", "d0a1f6a"),
        ("question",),
    ),
    _media_task(
        "image",
        "document-question-answering",
        "the words of a scanned document that answer a question",
        ("impira/layoutlm-document-qa", "beed3c4"),
        ("question", "word_boxes"),
        instead="word_boxes",
        chunk_records=32,
    ),
    _media_task("image", "depth-estimation", "the distance of each pixel", ("Intel/dpt-large", "bc15f29")),
    _media_task("image", "image-feature-extraction", "the hidden states of an image", _VIT),
    _media_task(
        "audio",
        "audio-classification",
        "labels and scores for a recording",
        ("superb/wav2vec2-base-superb-ks", "372e048"),
    ),
    _media_task(
        "audio",
        "zero-shot-audio-classification",
        "scores for labels given with the audio or by -p candidate_labels=",
        ("laion/clap-htsat-fused", "cca9e28"),
        _LABELS,
    ),
    _media_task(
        "video",
        "video-classification",
        "labels and scores for a video",
        ("MCG-NJU/videomae-base-finetuned-kinetics", "488eb9a"),
        chunk_records=16,
    ),
    _media_task(
        "audio",
        "automatic-speech-recognition",
        "the transcript of a recording",
        ("facebook/wav2vec2-base-960h", "22aad52"),
    ),
)

_MINILM = ("sentence-transformers/all-MiniLM-L6-v2", "c9745ed1d9f207416be6d2e6f8de32d1f16199bf")
_T5 = ("google-t5/t5-base", "a9723ea7f1b39c1eae772870f3b547bf6ef7e6c1")

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "fill-mask",
            "the most likely words for [MASK]",
            optional=("targets",),
            model="distilbert/distilroberta-base",
            revision="fb53ab8",
        ),
        Task(
            "text-classification",
            "a label and its score for each text",
            optional=("text_pair",),
            model="distilbert/distilbert-base-uncased-finetuned-sst-2-english",
            revision="714eb0f",
        ),
        Task(
            "token-classification",
            "names, places and other entities in a text",
            model="dbmdz/bert-large-cased-finetuned-conll03-english",
            revision="4c53496",
        ),
        Task(
            "zero-shot-classification",
            "scores for labels given with the record or by -p candidate_labels=",
            optional=("candidate_labels", "hypothesis_template", "multi_label"),
            model="facebook/bart-large-mnli",
            revision="d7645e1",
            chunk_records=64,
        ),
        Task(
            "text-generation",
            "text that continues a prompt or a chat",
            fields=(("text",), ("messages",)),
            model="HuggingFaceTB/SmolLM3-3B",
            revision="a07cc9a",
            chunk_records=64,  # as many as are decoded together on a CPU
        ),
        Task(
            "feature-extraction",
            "the hidden states of every token",
            model="distilbert/distilbert-base-cased",
            revision="6ea8117",
            chunk_records=64,
        ),
        Task(
            "embedding",
            "one vector for each text, image or recording",
            fields=(("text",), ("image",), ("audio",)),
            optional=("image", "audio"),
            media=("image", "audio"),
            model=_MINILM[0],
            revision=_MINILM[1],
        ),
        Task(
            "rerank",
            "the documents that fit a query best, and their scores",
            fields=(("query", "documents"), ("query", "document")),
            model="cross-encoder/ms-marco-MiniLM-L6-v2",
            revision="c5ee24cb16019beea0893ab7796b1df96625c6b8",
            chunk_records=64,
        ),
        Task(
            "sentence-similarity",
            "how similar sentences are to a source sentence",
            fields=(("source_sentence", "sentences"),),
            model=_MINILM[0],
            revision=_MINILM[1],
            chunk_records=64,
        ),
        Task(
            "sparse-embedding",
            "a sparse vector for each text: words of the vocabulary and their weights",
            model="ibm-granite/granite-embedding-30m-sparse",
            revision="ad82b1fd09541c998c8d45045d601c51fdb8a9b7",
            chunk_records=128,
        ),
        Task(
            "multi-vector-embedding",
            "a vector for each token of a text (late interaction)",
            model="answerdotai/answerai-colbert-small-v1",
            revision="be1703c55532145a844da800eea4c9a692d7e267",
            chunk_records=64,
        ),
        Task(
            "table-question-answering",
            "the cells that answer a question about a table",
            fields=(("table", "query"),),
            model="google/tapas-base-finetuned-wtq",
            revision="e3dde19",
            chunk_records=32,
        ),
        Task(
            "question-answering",
            "the span of a context that answers a question",
            fields=(("question", "context"),),
            model="distilbert/distilbert-base-cased-distilled-squad",
            revision="564e9b5",
            chunk_records=64,
        ),
        Task("translation", "the text in another language", chunk_records=32, model=_T5[0], revision=_T5[1]),
        Task(
            "summarization",
            "a shorter version of the text",
            model="facebook/bart-large-cnn",
            revision="37f520fa929c961707657b28798b30c003dd100b",
            chunk_records=16,
        ),
        Task(
            "text2text-generation",
            "the output of a sequence-to-sequence model",
            chunk_records=32,
            model=_T5[0],
            revision=_T5[1],
        ),
        Task(
            "text-to-audio",
            "speech, music or sounds from a text",
            optional=("speaker_embeddings",),
            model="suno/bark-small",
            revision="1dbd7a1",
            chunk_records=8,
        ),
        Task(
            "any-to-any",
            "text that answers a prompt, or continues a chat with images and audio",
            fields=(("text",), ("messages",)),
            model="google/gemma-3n-E4B-it",
            revision="c1221e9",
            chunk_records=16,
        ),
        Task(
            "decision",
            "probabilities for the options of typed questions about a state",
            fields=(("state", "questions"),),
            optional=("assets",),
            model="Qwen/Qwen2.5-0.5B-Instruct",
            revision="7ae5576",
            chunk_records=64,
        ),
        *MEDIA_TASKS,
    )
}

ALIASES = {
    "image-to-text": "image-text-to-text",
    "ner": "token-classification",
    "sentiment-analysis": "text-classification",
    "text-to-speech": "text-to-audio",
    "vqa": "visual-question-answering",
}


def list_tasks() -> list[tuple[str, Task]]:
    """Return every name that `--task` accepts, with its task."""
    rows = list(TASKS.items())
    rows += [(alias, TASKS[name]) for alias, name in ALIASES.items()]
    rows.append(("translation_xx_to_yy", TASKS["translation"]))
    rows += [(name, find_task(name)) for name in plugin_tasks()]
    return sorted(rows, key=lambda row: row[0])


def find_task(name: str) -> Task:
    """Return the task of that name, alias, `translation_xx_to_yy`, or runner entry point.

    Raises:
        UsageError: it is unknown; the message suggests similar names.
    """
    if builtin := TASKS.get(_own_name(name)):
        return builtin
    if name in plugin_tasks():
        return Task(name, "from another distribution")
    known = sorted({*TASKS, *ALIASES, "translation_xx_to_yy", *plugin_tasks()})
    hint = did_you_mean(name.lower().replace("_", "-"), known)
    raise UsageError(f"Unknown task {name!r}. {hint} See `producer tasks`.")


def declared_output(spec: JobSpec) -> OutputForm | None:
    """Return the form of the outputs of a job; None if only its runner knows, or if they have a format of their own."""
    if spec.training is not None or spec.format is not None:
        return None
    return output_form(_own_name(spec.task), spec.params)


def _own_name(name: str) -> str:
    """Return the name of a task in `TASKS`, of one of the names that `--task` accepts for it."""
    return "translation" if _TRANSLATION.match(name) else ALIASES.get(name, name)


def plugin_tasks() -> tuple[str, ...]:
    """Return the names of the tasks of other distributions."""
    return _plugin_tasks(tuple(sys.path))


@cache
def _plugin_tasks(_path: tuple[str, ...]) -> tuple[str, ...]:
    """Search them once for each path, as a search takes milliseconds."""
    return tuple(point.name for point in entry_points(group=RUNNER_ENTRY_POINTS))


def translation_languages(name: str) -> tuple[str, str] | None:
    """Return the two languages that `translation_xx_to_yy` names, or None."""
    match = _TRANSLATION.match(name)
    return (match[1], match[2]) if match else None
