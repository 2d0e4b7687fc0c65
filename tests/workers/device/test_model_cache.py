"""Loaded models: each once, the least recently used out first, and what does not fit is said so."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
from transformers import GPT2ForSequenceClassification

from common.errors import ModelError, WorkerError
from common.jobs import JobSpec, new_job_id
from common.records import FileInput, Record
from common.reporting import Reporter
from common.tasks import TASKS
from tests.support import tiny_models
from tests.support.device_process import StageList
from tests.support.processes import PLUGINS
from tests.support.tiny_adapters import save_adapter
from workers.device.server import model_cache
from workers.device.server.calibration import warm_up
from workers.device.server.memory import memory_of, weight_bytes
from workers.device.server.model_cache import ModelCache
from workers.device.server.request import Prefetched
from workers.device.server.run_chunk import prepare_chunk, run_chunk
from workers.inference.core.fallbacks import fallback_counts
from workers.inference.core.runner import NullMonitor
from workers.inference.core.samples import samples
from workers.inference.tasks.runners import find_runner
from workers.models.load_options import LoadOptions
from workers.models.resolver import ModelPolicy


class Ignoring:
    def batch(self, positions: object) -> None: ...

    def tick(self) -> None: ...


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(PLUGINS))
    yield
    sys.modules.pop("hugqueue_test_runners", None)


@pytest.fixture
def models() -> ModelCache:
    return ModelCache("cpu", ModelPolicy(any_path=True))


def _directory(parent: Path, name: str, size: int = 10) -> str:
    (parent / name).mkdir()
    (parent / name / "config.json").write_text("{}")
    with (parent / name / "model.safetensors").open("wb") as file:
        file.truncate(size)  # sparse: it takes no room
    return str(parent / name)


def _spec(task: str, model: str | None = None, **params: Any) -> JobSpec:
    return JobSpec(new_job_id(), task, model, params=params)


def _names(models: ModelCache) -> list[str]:
    return [Path(summary["model"]).name for summary in models.summaries()]


def test_another_thread_finds_what_is_loaded_and_nothing_else(models: ModelCache, tmp_path: Path):
    path = _directory(tmp_path, "one")
    with models.pin(_spec("test-model", path)) as found:
        assert found is None
    loaded, *_ = models.get(_spec("test-model", path, n=1), Reporter())
    with models.pin(_spec("test-model", path, n=2)) as found:
        assert found == (loaded, loaded.runner, {"n": 2})
    with models.pin(_spec("test-echo")) as found:
        assert found is None


def test_a_model_is_loaded_once_for_all_jobs(models: ModelCache, tmp_path: Path):
    stages: list[str] = []
    path = _directory(tmp_path, "one")
    first, *_ = models.get(_spec("test-model", path), StageList(stages))
    again, *_ = models.get(_spec("test-model", path), StageList(stages))
    assert again is first
    assert stages == [f"loading {path} (10 bytes)", ""]


def test_load_parameters_make_another_model_but_run_parameters_do_not(models: ModelCache):
    first, _, params = models.get(_spec("test-load", load_seconds=0, fail="x"), Reporter())
    assert params == {"fail": "x"}
    assert models.get(_spec("test-load", load_seconds=0, fail="y"), Reporter())[0] is first
    assert models.get(_spec("test-load", load_seconds=0.01), Reporter())[0] is not first


def test_the_least_recently_used_comes_first(models: ModelCache, tmp_path: Path):
    one, two = _directory(tmp_path, "one"), _directory(tmp_path, "two")
    for path in (one, two, one):
        models.get(_spec("test-model", path), Reporter())
    assert _names(models) == ["two", "one"]


def test_a_large_model_pushes_out_what_is_not_in_use(models: ModelCache, tmp_path: Path):
    models.get(_spec("test-model", _directory(tmp_path, "one")), Reporter())
    free = memory_of("cpu")[0]
    assert free
    models.get(_spec("test-model", _directory(tmp_path, "large", int(free * 0.9))), Reporter())
    assert _names(models) == ["large"]


def test_a_model_larger_than_the_memory_is_refused_before_it_is_loaded(models: ModelCache, tmp_path: Path):
    stages: list[str] = []
    with pytest.raises(WorkerError, match="does not fit") as caught:
        models.get(_spec("test-model", _directory(tmp_path, "huge", 1 << 43)), StageList(stages))
    assert (caught.value.code, stages) == ("no_memory", [])


def test_out_of_memory_while_loading_is_tried_again_alone_then_refused(models: ModelCache, tmp_path: Path):
    models.get(_spec("test-model", _directory(tmp_path, "one")), Reporter())
    stages: list[str] = []
    with pytest.raises(WorkerError) as caught:
        models.get(_spec("test-model", _directory(tmp_path, "two"), memory_error=True), StageList(stages))
    assert caught.value.code == "no_memory"
    assert stages[-1].endswith("now alone")
    assert models.summaries() == []


def test_a_job_cannot_name_what_the_worker_alone_decides(tmp_path: Path):
    trusting = ModelCache("cpu", ModelPolicy(any_path=True))
    path = _directory(tmp_path, "one")
    *_, params = trusting.get(_spec("test-model", path, allow_pickle=True), Reporter())
    assert params == {"allow_pickle": True}  # left to `run`, where no runner knows it


def test_facts_name_the_model_and_the_device(models: ModelCache, tmp_path: Path):
    path = _directory(tmp_path, "one")
    run_info = models.get(_spec("test-model", path), Reporter())[0].run_info()
    assert (run_info["model"], run_info["device"], run_info["source"]) == (path, "cpu", "path")


def test_a_task_without_a_default_model_wants_one(models: ModelCache):
    with pytest.raises(ModelError, match="--model"):
        models.get(_spec("test-model"), Reporter())


def test_weights_are_counted_once_when_there_are_copies_in_other_formats(tmp_path: Path):
    path = Path(_directory(tmp_path, "one", 1000))
    (path / "pytorch_model.bin").write_bytes(bytes(5000))
    assert weight_bytes(path) == 1000


def test_warming_up_reports_the_speed(models: ModelCache):
    loaded, *_ = models.get(_spec("test-echo"), Reporter())
    assert (warm_up(loaded, Ignoring()) or 0) > 0


def test_samples_fit_the_task_that_an_alias_means():
    assert samples("ner") == samples("token-classification")
    assert all("[MASK]" in text for text in samples("fill-mask"))


@pytest.mark.parametrize("task", sorted(TASKS))
def test_there_are_samples_that_have_the_fields_of_every_task(task: str):
    for sample in samples(task):
        value = sample.input if isinstance(sample, FileInput) else sample
        assert TASKS[task].build_input(value if isinstance(value, dict) else {TASKS[task].primary_field: value})


def test_the_engine_auto_is_transformers_where_no_gpu_is(tmp_path: Path):
    models = ModelCache("cpu", ModelPolicy(any_path=True, load=LoadOptions(engine="auto")))
    spec = _spec("text-generation", str(tiny_models.causal_gpt2(tmp_path / "model")))
    loaded, *_ = models.get(spec, Reporter())
    assert type(loaded.runner) is find_runner("text-generation")
    assert "engine_refused" not in loaded.run_info()


def test_what_an_engine_refuses_is_named_and_prepared_ahead_like_any_job(tmp_path: Path):
    """Without vLLM the model is refused too: what it lacks is known before it is loaded, or once it was tried."""
    models = ModelCache("cpu", ModelPolicy(any_path=True, load=LoadOptions(engine="vllm")))
    model = tiny_models.causal_openai_gpt(tmp_path / "model")
    adapter = save_adapter(model, tmp_path / "adapter")
    for spec, reason in (
        (_spec("text-generation", str(model), num_beams=2), "vllm: num_beams=2"),
        (_spec("text-generation", str(model), dtype="int8"), "vllm: dtype=int8"),
        (_spec("text-generation", str(adapter)), "vllm: the model is an adapter"),
        (_spec("text-generation", str(model)), None),
    ):
        fallbacks = fallback_counts().get("engine", 0)
        loaded, runner, params = models.get(spec, Reporter())
        info = loaded.run_info()
        assert info["engine"] == "transformers"
        assert info["engine_refused"] == reason or (reason is None and info["engine_refused"].startswith("vllm: "))
        assert fallback_counts().get("engine", 0) - fallbacks == (reason is None), "nothing was tried in vain"
        with models.pin(spec) as found:
            assert found is not None
            assert found[1:] == (runner, params)


def test_requests_that_another_thread_prepared_run_with_the_same_model(models: ModelCache, tmp_path: Path):
    spec = replace(_spec("text-generation", str(tiny_models.causal_gpt2(tmp_path / "model"))), format="openai")
    values = [
        {"prompts": [text], "options": {"do_sample": False, "max_new_tokens": n}} for n, text in enumerate("abc", 2)
    ]
    records = {number: Record(f"r{number}", value) for number, value in enumerate([*values, "no request"])}
    loaded, runner, params = models.get(spec, Reporter())
    expected = run_chunk(runner, records, params, "cpu", NullMonitor())
    with models.pin(spec) as found:
        assert found is not None
        prefetched = Prefetched(ref(found[0].runner), prepare_chunk(found[1], records, found[2]))
    loaded, runner, params = models.get(spec, Reporter())
    inputs = prefetched.inputs_for(loaded.runner)
    assert inputs is not None and inputs.prepared is not None
    assert run_chunk(runner, records, params, "cpu", NullMonitor(), inputs) == expected
    assert [outcome.failure is None for outcome in expected] == [True] * 3 + [False]


PROMPT = {"prompts": ["a"], "options": {"do_sample": False, "max_new_tokens": 1}}
RANKING = {"task": "rerank", "rankings": [{"query": "a", "documents": ["b", "c", "d"]}], "options": {}}


def test_a_model_that_cannot_do_the_task_of_some_requests_is_not_loaded_for_each_chunk(
    models: ModelCache, tmp_path: Path
):
    stages: list[str] = []
    model = str(tiny_models.causal_gpt2(tmp_path / "model"))
    spec = replace(_spec("text-generation", model), format="openai")
    for _ in range(2):
        _, runner, params = models.get(spec, StageList(stages))
        first, second = runner.run([PROMPT, RANKING], params, NullMonitor())
        assert first.failure is None
        assert second.failure is not None and second.failure.code == "missing_weights"
    assert len([stage for stage in stages if stage]) == 2  # one load for each task


def test_a_library_that_only_some_requests_need_is_missing_for_these_alone(
    models: ModelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    monkeypatch.delitem(sys.modules, "workers.inference.tasks.audio", raising=False)
    model_cache._find_runner.cache_clear()
    spec = replace(_spec("text-generation", str(tiny_models.causal_gpt2(tmp_path / "model"))), format="openai")
    _, runner, params = models.get(spec, Reporter())
    recording = {"task": "automatic-speech-recognition", "file": "data:audio/wav;base64,UklGRg==", "options": {}}
    first, second = runner.run([PROMPT, recording], params, NullMonitor())
    assert first.failure is None
    assert second.failure is not None and second.failure.code == "missing_library"
    assert "worker,audio" in second.failure.message


def test_what_a_job_says_of_sampling_is_not_taken_for_a_ranking(models: ModelCache, tmp_path: Path):
    path = tiny_models.causal_gpt2(tmp_path / "model", pad=True)
    GPT2ForSequenceClassification.from_pretrained(path, num_labels=1, pad_token_id=0).save_pretrained(path)
    spec = replace(_spec("text-generation", str(path), top_k=1, max_length=90, dtype="float32"), format="openai")
    _, runner, params = models.get(spec, Reporter())
    prompt, ranking = runner.run([PROMPT, RANKING], params, NullMonitor())
    assert prompt.failure is None
    assert ranking.failure is None
    assert len(ranking.output["scores"]) == 3
