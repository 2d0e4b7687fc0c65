"""Chunks and jobs by vLLM: what transformers runs instead, cancels, deaths of the engine, OpenAI lines of a queue."""

import json
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import psutil
import pytest
from openai.types.chat import ChatCompletion

from common.errors import Cancelled
from common.records import Json
from common.reporting import CancelToken
from tests.support import tiny_models
from tests.support.cli_processes import running_queue
from tests.support.device_process import RunningDevice, codes, gone, outcomes, running_device
from tests.support.processes import lines, wait_until
from workers.device.protocol import ChunkResult

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

TASK = "text-generation"
TEXTS = tuple(f"The number after {n} is" for n in range(6))
GREEDY: dict[str, Json] = {"do_sample": False, "max_new_tokens": 8, "chat": False}
LONG = GREEDY | {"max_new_tokens": 150, "min_new_tokens": 150}


@pytest.fixture(scope="module")
def device(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDevice]:
    roots = (smollm2, tmp_path_factory.getbasetemp())
    with (
        pytest.MonkeyPatch.context() as patch,
        running_device(patch, engine="vllm", model_roots=roots, batch_timeout=200.0) as running,
    ):
        yield running


def ask(device: RunningDevice, model: Path, params: dict[str, Json], inputs=TEXTS, **more) -> "Future[ChunkResult]":
    return device.submit(TASK, inputs, model=str(model), params=params, **more)


def texts(result: ChunkResult) -> list[str]:
    assert not codes(result)
    return [outcome.output for outcome in outcomes(result).values()]


def engine_process(device: RunningDevice) -> psutil.Process | None:
    children = psutil.Process(device.pid()).children(recursive=True)
    return next((child for child in children if "EngineCore" in " ".join(child.cmdline())), None)


def wait_until_busy(engine: psutil.Process) -> None:
    """Wait until the engine has computed for a while, in its own process or that of its model."""

    def seconds() -> float:
        return sum(process.cpu_times().user for process in (engine, *engine.children()))

    before = seconds()
    wait_until(lambda: seconds() > before + 0.5, 60, "vLLM generates")


def test_chunks_run_by_vllm_and_the_rest_by_transformers(device, smollm2, tmp_path):
    beams = ask(device, smollm2, GREEDY | {"num_beams": 2}).result(600)
    assert (beams.run_info["engine"], beams.run_info["engine_refused"]) == ("transformers", "vllm: num_beams=2")
    assert len(texts(beams)) == len(TEXTS)
    assert engine_process(device) is None

    by_vllm = ask(device, smollm2, GREEDY).result(600)
    assert by_vllm.run_info["engine"] == "vllm"
    assert by_vllm.run_info["versions"]["vllm"]
    assert "engine_refused" not in by_vllm.run_info

    refused = ask(device, tiny_models.causal_openai_gpt(tmp_path), GREEDY).result(600)
    assert refused.run_info["engine"] == "transformers"
    assert "OpenAIGPTLMHeadModel" in refused.run_info["engine_refused"]
    assert len(texts(refused)) == len(TEXTS)

    assert device.process.status.fallbacks["engine"] == 1
    assert texts(ask(device, smollm2, GREEDY).result(600)) == texts(by_vllm)


def test_a_cancel_in_the_middle_leaves_the_engine_to_others(device, smollm2):
    ask(device, smollm2, GREEDY).result(600)
    before = engine_process(device)
    token = CancelToken()
    asked = ask(device, smollm2, LONG, cancelled=token)
    wait_until_busy(before)
    token.cancel("a test")
    with pytest.raises(Cancelled):
        asked.result(60)
    assert len(texts(ask(device, smollm2, GREEDY).result(120))) == len(TEXTS)
    assert engine_process(device).pid == before.pid


def test_an_engine_that_dies_costs_no_record(device, smollm2):
    """The device process ends with it; the next one runs the records that were in flight, each by itself."""
    expected = texts(ask(device, smollm2, GREEDY).result(600))
    process, engine = device.pid(), engine_process(device)
    asked = ask(device, smollm2, LONG, TEXTS[:2])  # few, as each will run by itself
    wait_until_busy(engine)
    waiting, workers = ask(device, smollm2, GREEDY), [child.pid for child in engine.children()]
    assert workers
    engine.kill()
    wait_until(lambda: all(map(gone, [process, *workers])), 60, "the device process and all of vLLM end with it")
    assert texts(waiting.result(600)) == expected
    assert [len(text) > 100 for text in texts(asked.result(600))] == [True] * 2
    assert device.pid() != process


def test_openai_lines_of_a_queue_run_by_vllm(smollm2, tmp_path):
    bodies = [
        {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0},
        {"messages": [{"role": "user", "content": "Name a color."}], "n": 2, "seed": 1, "top_p": 0.9},
        {
            "messages": [{"role": "user", "content": "Is the sky blue?"}],
            "structured_outputs": {"choice": ["yes", "no"]},
        },
        {"messages": [{"role": "user", "content": "Count."}], "temperature": 0, "stop": ["3"]},
        {"messages": [{"role": "user", "content": "word " * 9000}]},
    ]
    with running_queue(tmp_path, "--engine", "vllm", HUGQUEUE_MODEL_ROOTS=str(smollm2)) as queue:
        requests = [
            {
                "custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions",
                "body": {"model": str(smollm2), "max_tokens": 16, **body},
            }
            for number, body in enumerate(bodies)
        ]  # fmt: skip
        path = queue.write("requests.jsonl", *map(json.dumps, requests))
        queue.run("submit", "--format", "openai", path, "-o", "responses.jsonl", status=3, seconds=600)
        found = lines((queue.directory / "responses.jsonl").read_text())
        [job] = json.loads(queue.run("jobs", "--json").stdout)
        ran_on = queue.status(job["id"])["ran_on"]
    assert ran_on["engine"] == "vllm"
    assert [line["custom_id"] for line in found] == [request["custom_id"] for request in requests]
    paris, colors, blue, count = (ChatCompletion.model_validate(line["response"]["body"]) for line in found[:4])
    assert "Paris" in paris.choices[0].message.content
    assert len(colors.choices) == 2
    assert blue.choices[0].message.content in ("yes", "no")
    assert "3" not in count.choices[0].message.content
    assert found[4]["error"]["code"] == "context_length_exceeded"
