"""The tasks that `--task` can name: their fields, default models and chunk sizes.

One row per task. What runs a task is in `workers.inference`; this table is what the producer knows.
Default models are those that transformers pins itself (`transformers/pipelines/__init__.py`, 5.23);
for `embedding` and the tasks that transformers 5 took out, ours.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points

from common.errors import RecordError, UsageError
from common.records import Json
from common.task_params import LOAD_PARAMS, TASK_PARAMS, Params

#: Other distributions bring runners of their own by entry points of this group, named as their task.
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
    hint: str = ""  #: how to name columns that are not found
    chunk_records: int = 256  #: about a second or more of compute on a CPU
    media: str | None = None  #: what its files hold, a kind of `common.media_types`; its field names one

    @property
    def primary_field(self) -> str | None:
        """The field that a record is which is a text and no object; None where it must be an object."""
        name = self.media or "text"
        return name if (name,) in self.fields else None

    @property
    def params(self) -> Params | None:
        """What `-p` takes, by name; None for the runner of another distribution, which alone knows its own."""
        return {**LOAD_PARAMS, **TASK_PARAMS[self.name]} if self.name in TASK_PARAMS else None

    @property
    def required_fields(self) -> str:
        """The required fields in words."""
        return " or ".join(" + ".join(names) for names in self.fields)

    def as_dict(self) -> dict[str, Json]:
        """Return what `--json` shows."""
        return {
            "summary": self.summary,
            "fields": [list(names) for names in self.fields],
            "optional": list(self.optional),
            "params": None if self.params is None else {name: kind.description for name, kind in self.params.items()},
            "model": self.model,
            "revision": self.revision,
        }

    def build_input(self, row: Mapping[str, Json]) -> Json:
        """Return the record's input: the text alone, or an object with the fields the task knows.

        Raises:
            RecordError: `missing_field`, if no alternative of required fields is there.
        """
        for names in self.fields:
            if all(row.get(name) is not None for name in names):
                extra = tuple(name for name in self.optional if row.get(name) is not None)
                if names == (self.primary_field,) and not extra:
                    return row[names[0]]
                return {name: row[name] for name in (*names, *extra)}
        found = ", ".join(sorted(map(str, row))) or "none"
        raise RecordError("missing_field", f"{self.name} needs {self.required_fields}; the record has: {found}")


def _media_task(kind: str, name: str, summary: str, default: tuple[str, str], optional: tuple[str, ...] = ()) -> Task:
    model, revision = default
    return Task(name, summary, ((kind,),), optional, model, revision, chunk_records=64, media=kind)


_VIT = ("google/vit-base-patch16-224", "3f49326")
_LABELS = ("candidate_labels", "hypothesis_template")

MEDIA_TASKS = (
    _media_task("image", "image-classification", "what an image shows", _VIT),
    _media_task(
        "image",
        "zero-shot-image-classification",
        "scores for labels named with the image or by -p candidate_labels=",
        ("openai/clip-vit-base-patch32", "3d74acf"),
        _LABELS,
    ),
    _media_task(
        "image", "object-detection", "the things in an image and where", ("facebook/detr-resnet-50", "1d5f47b")
    ),
    _media_task(
        "image", "image-segmentation", "the parts of an image as masks", ("facebook/detr-resnet-50-panoptic", "d53b52a")
    ),
    _media_task("image", "depth-estimation", "how far away each pixel is", ("Intel/dpt-large", "bc15f29")),
    _media_task("image", "image-feature-extraction", "the hidden states of an image", _VIT),
    _media_task("audio", "audio-classification", "what is heard", ("superb/wav2vec2-base-superb-ks", "372e048")),
    _media_task(
        "audio",
        "zero-shot-audio-classification",
        "scores for labels named with the sound or by -p candidate_labels=",
        ("laion/clap-htsat-fused", "cca9e28"),
        _LABELS,
    ),
    _media_task("audio", "automatic-speech-recognition", "what is said", ("facebook/wav2vec2-base-960h", "22aad52")),
)

_T5 = ("google-t5/t5-base", "a9723ea7f1b39c1eae772870f3b547bf6ef7e6c1")

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "fill-mask",
            "the likeliest words for [MASK]",
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
            "scores for labels named with the record or by -p candidate_labels=",
            optional=("candidate_labels", "hypothesis_template", "multi_label"),
            model="facebook/bart-large-mnli",
            revision="d7645e1",
            chunk_records=64,
        ),
        Task(
            "text-generation",
            "text that goes on from a prompt or a chat",
            fields=(("text",), ("messages",)),
            model="HuggingFaceTB/SmolLM3-3B",
            revision="a07cc9a",
            chunk_records=32,
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
            "one vector for each text",
            model="sentence-transformers/all-MiniLM-L6-v2",
            revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
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
            "the part of a text that answers a question",
            fields=(("question", "context"),),
            model="distilbert/distilbert-base-cased-distilled-squad",
            revision="564e9b5",
            chunk_records=64,
        ),
        Task("translation", "the text in another language", chunk_records=32, model=_T5[0], revision=_T5[1]),
        Task(
            "summarization",
            "a shorter text that says the same",
            model="facebook/bart-large-cnn",
            revision="37f520fa929c961707657b28798b30c003dd100b",
            chunk_records=16,
        ),
        Task(
            "text2text-generation",
            "what a sequence-to-sequence model answers",
            chunk_records=32,
            model=_T5[0],
            revision=_T5[1],
        ),
        *MEDIA_TASKS,
    )
}

ALIASES = {"sentiment-analysis": "text-classification", "ner": "token-classification"}


def list_tasks() -> list[tuple[str, Task]]:
    """Return every name that `--task` takes, with its task."""
    rows = list(TASKS.items())
    rows += [(alias, TASKS[name]) for alias, name in ALIASES.items()]
    rows.append(("translation_xx_to_yy", TASKS["translation"]))
    rows += [(point.name, find_task(point.name)) for point in entry_points(group=RUNNER_ENTRY_POINTS)]
    return sorted(rows, key=lambda row: row[0])


def find_task(name: str) -> Task:
    """Return the task of that name, alias, `translation_xx_to_yy`, or runner entry point.

    Raises:
        UsageError: there is none; the nearest names are offered.
    """
    if name in TASKS or name in ALIASES:
        return TASKS[ALIASES.get(name, name)]
    if _TRANSLATION.match(name):
        return TASKS["translation"]
    plugins = [point.name for point in entry_points(group=RUNNER_ENTRY_POINTS)]
    if name in plugins:
        return Task(name, "a runner of another distribution")
    known = sorted({*TASKS, *ALIASES, "translation_xx_to_yy", *plugins})
    near = difflib.get_close_matches(name.lower().replace("_", "-"), known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known tasks: {', '.join(known)}."
    raise UsageError(f"Unknown task {name!r}. {hint} `producer tasks` describes them all.")


def translation_languages(name: str) -> tuple[str, str] | None:
    """Return the two languages that `translation_xx_to_yy` names, or None."""
    match = _TRANSLATION.match(name)
    return (match[1], match[2]) if match else None
