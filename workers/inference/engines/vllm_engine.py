"""vLLM as an engine: its scheduler and its model in child processes, its client in a thread of this one.

A prompt is sent as soon as it is submitted, whatever else is in flight, so the scheduler never waits for a chunk to
end. Text is made of the tokens as for transformers; vLLM decodes only where stop strings need it.
"""

import asyncio
import itertools
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import torch

from common.errors import RecordError, first_line
from workers.inference.core.device_errors import EngineDied
from workers.inference.engines.interface import Continuation, Prompt
from workers.inference.engines.refusal import EngineRefusal
from workers.inference.engines.sampling import sampling_arguments
from workers.inference.engines.vllm_plugin import MARK

#: For vLLM and its child processes, unless the environment says otherwise.
_ENVIRONMENT = {
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork would copy threads' locks, and what they hold
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",  # it sends nothing over the network
    # On a CPU it would bind its threads to all cores but the last: those of each worker of a machine to the same ones.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
#: Tokens of a text after which the client hears of it: a sign of life, and when a cancel is noticed.
_STREAM_INTERVAL = 8
#: Bytes of the cache on a CPU, where free memory is for everyone; VLLM_CPU_KVCACHE_SPACE overrides it.
_CPU_CACHE = 4 << 30
#: Of the free memory of a GPU, what is left to others.
_FREE_SHARE = 0.95
#: Seconds that the child processes may take to end by themselves.
_STOP_SECONDS = 2.0

T = TypeVar("T")


class VllmEngine:
    """A model in vLLM.

    Args:
        directory: of the model, checked.
        device: `cpu` or `cuda:0`.
        dtype: the model's.
        memory: share of a GPU's memory that it may take.
        options: for vLLM's `AsyncEngineArgs`.

    Raises:
        EngineRefusal: vLLM cannot load it.
    """

    def __init__(self, directory: Path, device: str, dtype: torch.dtype, memory: float, **options: Any) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        os.environ[MARK] = "1"
        self.progress = 0  #: how many outputs it has given: while texts are in flight, one that works adds to it
        self._ids = itertools.count()
        self._loop = asyncio.new_event_loop()
        # The kernel ends the child processes with the thread that started them.
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        try:
            self._llm = self._call(_start(directory, device, dtype, memory, options))
        except Exception as error:  # whatever the reason is, transformers may run the model
            self._stop_loop()
            raise EngineRefusal(_reason(error)) from error
        self.context = int(self._llm.model_config.max_model_len)  #: tokens of a prompt and its text together
        #: About how much of the device's memory it has taken.
        self.memory_bytes = _taken(self._llm.vllm_config.cache_config, directory, device)

    @property
    def died(self) -> bool:
        """Whether it can generate no more."""
        return bool(self._llm.errored)

    def submit(self, prompt: Prompt, config: Any) -> "Future[list[Continuation]]":
        """Queue a prompt; return what follows it, once for each copy. Any thread may call this.

        Cancelling the future ends the generation.

        The future raises:
            EngineDied: vLLM has ended.
            RecordError: it does not take this prompt.
        """
        return asyncio.run_coroutine_threadsafe(self._generate(prompt, config), self._loop)

    def close(self) -> None:
        """End its processes."""
        self._llm.shutdown(timeout=_STOP_SECONDS)
        self._stop_loop()

    async def _generate(self, prompt: Prompt, config: Any) -> list[Continuation]:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        try:
            params = _sampling_params(prompt, config, self._llm.model_config.get_vocab_size())
            texts = [Continuation() for _ in range(params.n)]
            async for output in self._llm.generate(_vllm_prompt(prompt), params, str(next(self._ids))):
                self.progress += 1
                for part in output.outputs:
                    texts[part.index].prompt = output.prompt_token_ids
                    texts[part.index].tokens.extend(part.token_ids)
                    for scores in part.logprobs or ():
                        texts[part.index].logprobs.append({token: one.logprob for token, one in scores.items()})
        except EngineDeadError as error:
            raise EngineDied("vLLM's process has ended") from error
        except (VLLMClientError, EngineGenerateError, ValueError) as error:
            reason = first_line(error.__cause__ or error)
            raise RecordError("runner_error", f"vLLM does not take this record: {reason}") from error
        return texts

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


async def _start(directory: Path, device: str, dtype: torch.dtype, memory: float, options: dict[str, Any]) -> Any:
    """Return vLLM's client; its processes have loaded the model."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = {
        "model": str(directory),
        "dtype": str(dtype).removeprefix("torch."),
        "generation_config": "vllm",  # prompts come with all they need of the model's
        "max_model_len": -1,  # what the model takes, or fewer where memory is short
        "stream_interval": _STREAM_INTERVAL,
        "structured_outputs_config": {"backend": "guidance"},  # what checks and compiles constraints here, too
        "disable_log_stats": True,
        **_memory_arguments(device, memory),
        **options,
    }
    return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))


def _reason(error: Exception) -> str:
    """Return the line that says what is wrong: the first of a pydantic error says only that something is."""
    details = getattr(error, "errors", None)
    text = details()[0]["msg"].removeprefix("Value error, ") if callable(details) else error
    return first_line(ValueError(text))


def _memory_arguments(device: str, memory: float) -> dict[str, Any]:
    if not device.startswith("cuda"):
        # Compiling a model takes minutes on a CPU, for little.
        return {"kv_cache_memory_bytes": _CPU_CACHE, "enforce_eager": True}
    free, total = torch.cuda.mem_get_info(device)
    return {"gpu_memory_utilization": min(memory, _FREE_SHARE * free / total)}


def _taken(cache: Any, directory: Path, device: str) -> int:
    if device.startswith("cuda"):
        return int(cache.gpu_memory_utilization * torch.cuda.mem_get_info(device)[1])
    return int(cache.kv_cache_memory_bytes or 0) + sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def _vllm_prompt(prompt: Prompt) -> Any:
    images = {"multi_modal_data": {"image": list(prompt.images)}} if prompt.images else {}
    return {"prompt_token_ids": prompt.tokens, **images}


def _sampling_params(prompt: Prompt, config: Any, vocabulary: int) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    arguments = sampling_arguments(config, len(prompt.tokens), vocabulary)
    if prompt.structure is not None:
        arguments["structured_outputs"] = StructuredOutputsParams(**prompt.structure)
    return SamplingParams(
        **arguments,
        seed=prompt.seed,
        logprobs=prompt.logprobs,
        detokenize=bool(arguments["stop"]),
        output_kind=RequestOutputKind.DELTA,
    )
