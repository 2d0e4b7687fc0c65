"""The runner of text generation by an engine: prompts and outputs of the task, tokens of the engine.

`prepare` hands all prompts of a chunk to the engine at once. It is called for the next chunk while this one runs, so
the engine has work before the last text of a chunk has ended.
"""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import RecordError
from common.records import Failure, Json, Outcome
from common.tasks import find_task
from workers.inference.core.device_errors import EngineDied
from workers.inference.core.runner import PreparingRunner, RunMonitor
from workers.inference.engines.interface import Continuation
from workers.inference.engines.refusal import EngineRefusal, known_refusal
from workers.inference.engines.sampling import lacking_parameter
from workers.inference.engines.vllm_engine import VllmEngine
from workers.inference.loading.dtypes import AUTO, resolve_dtype
from workers.inference.loading.loader import ModelSource
from workers.inference.tasks.engine_tasks import ENGINE_TASKS, prompt_of, row_of
from workers.inference.tasks.pipeline_task import PreparedRecord, finish_record, prepare_record
from workers.models.load_options import DEFAULT_OPTIONS, LoadOptions

#: Seconds between two looks at what has ended.
_POLL = 0.1


@dataclass
class _Chunk:
    """A chunk whose prompts the engine has; dropping it ends what is in flight."""

    size: int
    params: Any
    outcomes: dict[int, Outcome] = field(default_factory=dict)  #: of records that cannot run
    records: dict[int, PreparedRecord] = field(default_factory=dict)
    texts: "dict[int, Future[list[Continuation]]]" = field(default_factory=dict)

    def cancel(self) -> None:
        for future in self.texts.values():
            future.cancel()

    def __del__(self) -> None:  # a chunk that was prepared and never ran, such as one that was cancelled
        self.cancel()


class EngineRunner(PreparingRunner):
    """A task that generates text, by an engine."""

    def __init__(self, task: str, model: Path | None, device: str, options: LoadOptions = DEFAULT_OPTIONS) -> None:
        """Load the model into the engine.

        Raises:
            ModelError: as `load_model` and `load_tokenizer`.
            EngineRefusal: the engine does not serve the model.
        """
        source = ModelSource.of(task, model, options)
        if reason := known_refusal(options, {}):
            raise EngineRefusal(reason)
        dtype = resolve_dtype(options.default_dtype if options.dtype == AUTO else options.dtype, device)
        self._dtype = str(dtype).removeprefix("torch.")
        self._task: Any = ENGINE_TASKS[find_task(task).name].of(source)
        self._lock = threading.Lock()  # its tokenizer's settings cannot change while another thread uses it
        self._engine = VllmEngine(
            source.directory,
            device,
            dtype,
            options.engine_memory,
            trust_remote_code=options.runs_code,
            load_format="auto" if options.allow_pickle else "safetensors",
        )

    def refusal(self, params: Mapping[str, Json]) -> str | None:
        """Return the parameter, of the job or of the model's own configuration, that the engine lacks."""
        with self._lock:
            config = self._task.parse_params(params).config
        return lacking_parameter(vars(config)) or self._task.uncounted(config)

    @property
    def broken(self) -> bool:
        """Whether the engine has ended."""
        return self._engine.died

    def close(self) -> None:
        """End the engine."""
        self._engine.close()

    def is_deterministic(self, params: Mapping[str, Json]) -> bool:
        """Return whether equal records get equal outputs under these parameters."""
        with self._lock:
            return bool(self._task.is_deterministic(self._task.parse_params(params)))

    def memory_bytes(self) -> int:
        """Return how much memory the engine has taken."""
        return self._engine.memory_bytes

    def run_info(self) -> dict[str, Json]:
        """Return the engine and the model's dtype."""
        return {"engine": "vllm", "dtype": self._dtype}

    def prepare(self, inputs: Sequence[Json], params: Mapping[str, Json]) -> _Chunk:
        """Hand the prompts of a chunk to the engine."""
        with self._lock:
            chunk = _Chunk(len(inputs), self._task.parse_params(params))
        for position, value in enumerate(inputs):
            with self._lock:
                record = prepare_record(self._task, value, chunk.params)
            if isinstance(record, Failure):
                chunk.outcomes[position] = Outcome(failure=record)
            elif failure := self._too_long(record, chunk.params):
                chunk.outcomes[position] = Outcome(failure=failure)
            else:
                chunk.records[position] = record
                prompt = prompt_of(record.inputs[0], chunk.params)
                chunk.texts[position] = self._engine.submit(prompt, chunk.params.config)
        return chunk

    def run_prepared(self, prepared: _Chunk, monitor: RunMonitor) -> list[Outcome]:
        """Wait for the texts of a chunk; return for each record what transformers' pipeline gives.

        Raises:
            EngineDied: the engine has ended; the monitor knows the records that it had.
        """
        outcomes, waiting = dict(prepared.outcomes), dict(prepared.texts)
        try:
            monitor.batch(sorted(waiting))
            seen = self._engine.progress
            while waiting:
                done = wait(waiting.values(), _POLL).done
                if done or self._engine.progress != seen:
                    seen = self._engine.progress
                    monitor.tick()
                for position in [position for position, future in waiting.items() if future in done]:
                    outcomes[position] = self._finish(prepared, position, waiting[position])
                    del waiting[position]
        except EngineDied:
            monitor.batch(sorted(waiting))
            raise
        finally:
            prepared.cancel()
        return [outcomes[position] for position in range(prepared.size)]

    def _finish(self, chunk: _Chunk, position: int, texts: "Future[list[Continuation]]") -> Outcome:
        record, params = chunk.records.pop(position), chunk.params
        try:
            row = row_of(self._task, record.inputs[0], texts.result(), params)
        except RecordError as error:
            return Outcome(failure=Failure(error.code, error.message))
        with self._lock:
            return finish_record(record, lambda: self._task.postprocess([row], record, params))

    def _too_long(self, record: PreparedRecord, params: Any) -> Failure | None:
        needed = self._task.tokens(record.inputs[0], params)
        if needed <= self._engine.context:
            return None
        return Failure(
            "too_long",
            f"The prompt and the text may have {needed:,} tokens together, and the engine has room for "
            f"{self._engine.context:,}. Ask for fewer (-p max_new_tokens=N), or give it more (HUGQUEUE_ENGINE_MEMORY).",
        )
