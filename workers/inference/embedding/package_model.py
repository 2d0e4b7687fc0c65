"""Models that the modules of sentence-transformers run: loaded from a checked directory, and called a batch at a time.

The library takes what it is given for what it looks like: a text that is the path or URL of an image would be opened by
a model that also takes images. So texts are passed as texts to such a model (`_as_text`). And it gives weights that no
file has random values with a warning; here that is an error.
"""

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.distribution import installed_version, missing_libraries
from common.errors import CodedError, ModelError, first_line
from common.records import Json
from workers.inference.core.device_errors import is_device_lost, is_out_of_memory
from workers.inference.core.token_budget import TokenBudget
from workers.inference.embedding.module_files import check_module_files, tokenizer_files
from workers.inference.embedding.prompts import QUERY, Prompts
from workers.inference.loading.batch_invariance import same_in_batch
from workers.inference.loading.dtypes import AUTO, FLOAT8, INT8, dtype_name, resolve_dtype, to_device
from workers.inference.loading.loader import (
    LOAD_ERRORS,
    ModelSource,
    check_complete,
    lacking_weights,
    memory_bytes,
    missing_library,
    silence_transformers,
)
from workers.inference.text.collate import concatenate, shapes_of, size_in_tokens, tensors_of

_POOLER = "pooler."
#: Checks a model of transformers, given what its loading found and the directory; raises ModelError.
PartCheck = Callable[[Any, Mapping[str, Any], Path], None]
#: A short text and a long one, which show whether padding changes what a model gives.
_TRIAL_TEXTS = ("Water", "The old library stands beside the river. It opens at nine, closes at six, and keeps maps.")


@dataclass(frozen=True, slots=True)
class PackageText:
    """A text for a module of sentence-transformers, which tokenizes it itself."""

    text: Any  #: or a pair of texts
    tokens: int
    truncated: bool

    def __len__(self) -> int:
        return self.tokens


@dataclass(frozen=True, slots=True)
class PackageMedia:
    """An input with an image or sound, which the model's processor has prepared."""

    features: Mapping[str, Any]  #: a batch of one
    truncated: bool = False

    def __len__(self) -> int:
        return size_in_tokens(self.features)

    @property
    def group(self) -> Hashable:
        """What the inputs of a batch have in common: nothing is padded."""
        return shapes_of(self.features)


class PackageModel:
    """A model of sentence-transformers: `SentenceTransformer`, `CrossEncoder`, `SparseEncoder`, `MultiVectorEncoder`.

    Args:
        kind: the name of its class.
        source: its directory, and the options.
        device: `cpu`, `cuda:0`.

    Raises:
        WorkerError: `missing_library`, sentence-transformers is not installed.
        ModelError: what `check_module_files` finds; `missing_weights`; `not_a_model`, it cannot be loaded;
            `bad_param`, the dtype.
    """

    def __init__(self, kind: str, source: ModelSource, device: str) -> None:
        check_installed("This model needs the modules of sentence-transformers")
        self.device = device
        self._model = _load(kind, source, device)
        self.tokenizer_lock = threading.Lock()  # it cannot be reconfigured while another thread uses it
        self._takes_media = any(kind not in ("text", "message") for kind in self._model.modalities)
        self.prompts = Prompts(dict(self._model.prompts), self._model.default_prompt_name)
        self.routes: tuple[str, ...] = tuple(getattr(self._model[0], "sub_modules", ()))

    @property
    def model(self) -> Any:
        """The model itself, a sequence of modules."""
        return self._model

    @property
    def max_tokens(self) -> int | None:
        """Tokens of a text at most; None for no limit, or an unknown one."""
        found = self._model.max_seq_length
        return found if isinstance(found, int) and found < 10**9 else None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers; None if its texts are split by other means."""
        found = getattr(self._model, "tokenizer", None)
        return found if hasattr(found, "is_fast") and callable(found) else None

    def encode(self, texts: Sequence[Any], prompt: str, task: str | None = None) -> list[PackageText]:
        """Return texts, or pairs of texts, with their number of tokens; any thread may call this."""
        if not texts:
            return []
        counts, limit = self._count(texts, prompt), self._task_tokens(task) or self.max_tokens
        cut = [limit is not None and count > limit for count in counts]
        return [
            PackageText(text, min(count, limit) if limit else count, truncated)
            for text, count, truncated in zip(texts, counts, cut, strict=True)
        ]

    def supports(self, names: Iterable[str]) -> bool:
        """Whether the model takes an input of these types together (`text`, `image`, `audio`)."""
        first, *rest = sorted(names)
        return bool(self._model.supports((first, *rest) if rest else first))

    @property
    def sampling_rate(self) -> int:
        """Samples of sound a second that the model takes; 0 if it takes none."""
        processors = [getattr(module, "processor", None) for module in self._model.modules()]
        extractors = [getattr(processor, "feature_extractor", processor) for processor in processors]
        return next((rate for one in extractors if (rate := getattr(one, "sampling_rate", 0))), 0)

    def prepare_media(self, parts: Mapping[str, Any], prompt: str, task: str | None) -> PackageMedia:
        """Return an input with an image or sound, prepared; any thread may call this.

        Args:
            parts: as `SentenceTransformer.encode` takes them, by type.
            prompt: as `forward` takes it.
            task: as `forward` takes it.
        """
        features = self._preprocess([dict(parts)], prompt, {"task": task} if task else {})
        part = self._model.transformers_model
        if part is None:
            return PackageMedia(features)
        numbers = {name: value for name, value in tensors_of(features).items() if value.is_floating_point()}
        return PackageMedia(features | {name: value.to(part.dtype) for name, value in numbers.items()})

    def forward(
        self, rows: Sequence[PackageText] | Sequence[PackageMedia], prompt: str, task: str | None, **kwargs: Any
    ) -> dict[str, Any]:
        """Return what the last module gives for a batch.

        Args:
            rows: of the batch; all texts, or all of one `PackageMedia.group`.
            prompt: before each text; empty for none.
            task: `query`, `document`, or a route of the model's Router; None for its default.
            kwargs: further arguments of the modules, such as `max_active_dims`.
        """
        from sentence_transformers.util import batch_to_device

        more = {"task": task} if task else {}
        media = [dict(row.features) for row in rows if isinstance(row, PackageMedia)]
        texts = [self._as_text(row.text) for row in rows if isinstance(row, PackageText)]
        with torch.inference_mode():
            features = concatenate(media) if media else self._preprocess(texts, prompt, more)
            found: dict[str, Any] = self._model(batch_to_device(features, self.device), **more, **kwargs)
            return found

    def restrict_batches(
        self, budget: TokenBudget, run: Callable[[Sequence[PackageText]], Sequence[Tensor]], *, pairs: bool = False
    ) -> None:
        """Allow only batches of one text if a neighbor changes what `run` gives for a text."""
        rows = self.encode([("The river", text) for text in _TRIAL_TEXTS] if pairs else _TRIAL_TEXTS, "")
        try:
            same = same_in_batch(self._model, lambda batch: [[one] for one in run(batch)], *rows)
        except Exception as error:  # any architecture may be loaded, and may raise anything
            if is_out_of_memory(error) or is_device_lost(error):
                raise
            raise ModelError("model_load_failed", f"The model cannot read a text: {first_line(error)}") from error
        if not same:
            budget.items = 1

    def memory_bytes(self) -> int:
        """Return the bytes of the model's parameters and buffers."""
        return memory_bytes(self._model)

    def run_info(self) -> dict[str, Json]:
        """Return the model's dtype, its attention, and the library that runs it."""
        part = self._model.transformers_model
        library = {"modules": f"sentence-transformers {installed_version('sentence-transformers')}"}
        if part is None:
            return {"dtype": "float32", **library}
        return {"dtype": dtype_name(part), "attention": part.config._attn_implementation, **library}

    def _preprocess(self, inputs: Sequence[Any], prompt: str, more: Mapping[str, Any]) -> dict[str, Any]:
        with self.tokenizer_lock:
            found: dict[str, Any] = self._model.preprocess(inputs, prompt=prompt or None, **more)
            return found

    def _as_text(self, text: Any) -> Any:
        return {"text": text} if self._takes_media and isinstance(text, str) else text

    def _task_tokens(self, task: str | None) -> int | None:
        """Return how many tokens a query or a document may have; None for as many as any text."""
        expansion = getattr(self._model[0], "query_expansion", None) if task == QUERY else None
        if expansion and expansion["strategy"] == "fixed":
            return int(expansion["length"])
        found: int | None = getattr(self._model[0], f"{task}_length", None)
        return found

    def _count(self, texts: Sequence[Any], prompt: str) -> list[int]:
        tokenizer = self.tokenizer
        if tokenizer is None:
            return [len(text.split()) for text in texts]
        with self.tokenizer_lock:
            pairs = isinstance(texts[0], tuple)
            columns = zip(*texts, strict=True) if pairs else (texts,)
            first, *second = map(list, columns)
            found = tokenizer([prompt + text for text in first], *second, padding=False, truncation=False)
        return [len(ids) for ids in found["input_ids"]]


def check_installed(what: str) -> None:
    """Check that sentence-transformers is installed.

    Args:
        what: what needs it, with its name at the end.

    Raises:
        WorkerError: `missing_library`.
    """
    if missing_libraries(["sentence_transformers"]):
        raise missing_library(f"{what}, which is not installed", "sentence-transformers")


def _load(kind: str, source: ModelSource, device: str) -> Any:
    options = source.options
    insists = options.dtype != AUTO
    chosen = options.dtype if insists else options.default_dtype
    model, parts = open_model(kind, source, resolve_dtype(chosen, device, insists=insists))
    for part in parts:
        to_device(part, chosen, device, insists=insists)
    if not parts and insists and chosen in (INT8, FLOAT8):
        raise ModelError("bad_param", f"dtype={chosen} is for transformers; this model has none.")
    return model.to(device).eval().requires_grad_(False)


def _check_part(model: Any, info: Mapping[str, Any], directory: Path) -> None:
    """Refuse a model of transformers that lacks weights."""
    lacking = [name for name in lacking_weights(model, info["missing_keys"]) if _POOLER not in name]
    check_complete(model, lacking, directory)


def open_model(
    kind: str,
    source: ModelSource,
    dtype: Any,
    check: PartCheck = _check_part,
    *,
    model_kwargs: Mapping[str, Any] | None = None,
    **more: Any,
) -> tuple[Any, list[Any]]:
    """Return a model of sentence-transformers from a checked directory, and the models of transformers in it.

    Args:
        kind: the name of its class.
        source: its directory, and the options.
        dtype: of torch.
        check: called with each model of transformers and what its loading found; may refuse it.
        model_kwargs: further arguments for loading models of transformers.
        more: further arguments of the class.

    Raises:
        ModelError: what `check_module_files` finds, or `check`; `missing_weights`; `not_a_model`, `unknown_module`, it
            cannot be loaded.
    """
    import sentence_transformers

    check_module_files(source)
    silence_transformers()
    with _loaded_parts(source.directory, check) as parts:
        try:
            model = getattr(sentence_transformers, kind)(
                str(source.directory),
                device="cpu",
                local_files_only=True,
                trust_remote_code=False,
                processor_kwargs=tokenizer_files(source.directory) or None,
                model_kwargs={
                    "dtype": dtype,
                    "use_safetensors": None if source.options.allow_pickle else True,
                    **(model_kwargs or {}),
                },
                **more,
            )
        except CodedError:
            raise
        except LOAD_ERRORS as error:
            if is_out_of_memory(error):
                raise
            raise _explained(kind, source, error) from error
    return model, parts


@contextmanager
def _loaded_parts(directory: Path, check: PartCheck) -> Iterator[list[Any]]:
    """While entered, collect the models of transformers that are loaded, each checked."""
    original = PreTrainedModel.from_pretrained.__func__
    parts: list[Any] = []

    def from_pretrained(cls: type[PreTrainedModel], *args: Any, **kwargs: Any) -> Any:
        model, info = original(cls, *args, **{**kwargs, "output_loading_info": True})
        check(model, info, directory)
        parts.append(model)
        return (model, info) if kwargs.get("output_loading_info") else model

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)
    try:
        yield parts
    finally:
        PreTrainedModel.from_pretrained = classmethod(original)


def _explained(kind: str, source: ModelSource, error: Exception) -> ModelError:
    text = first_line(error)
    if "state_dict" in str(error) or "Could not find 'model.safetensors'" in str(error):
        return ModelError("missing_weights", f"{source.directory} lacks weights of a module: {str(error)[:500]}")
    if isinstance(error, ImportError | AttributeError):
        return ModelError(
            "unknown_module",
            f"The model in {source.directory} cannot be loaded as {kind}: {text}. "
            f"sentence-transformers {installed_version('sentence-transformers')} is installed.",
        )
    return ModelError("not_a_model", f"The model in {source.directory} cannot be loaded as {kind}: {text}")
