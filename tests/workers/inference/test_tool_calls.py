"""Calls of tools, in the form of each family of models, become names and arguments; all else stays text."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PretrainedConfig

from common.errors import ModelError
from common.records import Json
from tests.support import tiny_models
from tests.support.pipeline_reference import runner_of
from tests.support.tiny_models import RecordingMonitor
from workers.inference.generation.tool_calls import Reply, ToolCallReader
from workers.inference.openai.batch_runner import OpenAIBatchRunner
from workers.inference.tasks.pipeline_runner import PipelineRunner

TOOLS: Json = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {"n": {}}}}}
    for name in ("weather", "get-time")
]
HERMES = "<tool_call>"
MISTRAL, OLD_MISTRAL = "[TOOL_CALLS]{}[ARGS]", "[TOOL_CALLS]"
LLAMA = '{"name": function name, "parameters": dictionary of argument name and its value}'
PARIS = {"name": "weather", "arguments": {"city": "Paris", "n": 7}}
SEOUL = {"name": "get-time", "arguments": {"city": "서울"}}
ODD = {"name": "weather", "arguments": {"city": 'a; {"b"'}}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(tiny_models.causal_gpt2(tmp_path_factory.mktemp("gpt2")))


class Model:
    """All that the reader asks of a model."""

    def __init__(self, kind: str) -> None:
        self.config = PretrainedConfig()
        self.config.model_type = kind


def read(tokenizer: Any, template: str, text: str, kind: str = "gpt2", prompt: str = "") -> Reply | None:
    tokenizer.chat_template = f"{{{{ tools }}}} {{% raw %}}{template}{{% endraw %}}"
    reader = ToolCallReader(Model(kind), tokenizer)
    return reader.read(tokenizer(prompt)["input_ids"], tokenizer(text)["input_ids"], TOOLS)


def calls(*found: Json) -> list[Json]:
    return [{"name": one["name"], "arguments": json.dumps(one["arguments"], ensure_ascii=False)} for one in found]


def hermes(*found: Json) -> str:
    return "\n".join(f"<tool_call>\n{json.dumps(one, ensure_ascii=False)}\n</tool_call>" for one in found)


def llama(*found: Json) -> str:
    return "; ".join(
        json.dumps({"name": one["name"], "parameters": one["arguments"]}, ensure_ascii=False) for one in found
    )


@pytest.mark.parametrize(
    ("template", "text", "content", "found"),
    [
        (HERMES, hermes(PARIS), "", [PARIS]),
        (HERMES, "Let me see.\n" + hermes(PARIS, SEOUL), "Let me see.", [PARIS, SEOUL]),
        (MISTRAL, '[TOOL_CALLS]weather[ARGS]{"city": "Paris", "n": 7}', "", [PARIS]),
        (
            MISTRAL,
            'Sure.[TOOL_CALLS]weather[ARGS]{"city": "Paris", "n": 7}[TOOL_CALLS]get-time[CALL_ID]a1[ARGS]'
            '{"city": "서울"}',
            "Sure.",
            [PARIS, SEOUL],
        ),
        (OLD_MISTRAL, f"[TOOL_CALLS] {json.dumps([PARIS, SEOUL])}", "", [PARIS, SEOUL]),
        (LLAMA, '{"name": "weather", "parameters": {"city": "Paris", "n": 7}}', "", [PARIS]),
        (LLAMA, '<|python_tag|>{"name": "weather", "parameters": {"city": "Paris", "n": 7}}', "", [PARIS]),
        (LLAMA, llama(PARIS, SEOUL), "", [PARIS, SEOUL]),
        (LLAMA, llama(ODD, SEOUL, PARIS).replace("}; {", "} ;\n{"), "", [ODD, SEOUL, PARIS]),
    ],
)
def test_the_form_of_each_family_is_read(tokenizer: Any, template: str, text: str, content: str, found: list[Json]):
    assert read(tokenizer, template, text) == Reply(content, calls(*found))


def test_families_that_transformers_knows_are_read_by_its_own_templates(tokenizer: Any):
    text = "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>"
    prompt = "<|im_start|>assistant\n<think>\n"
    found = read(tokenizer, f"{HERMES} <function=", f"It may rain.\n</think>\n\n{text}", "qwen3_5", prompt)
    assert found and found.calls == calls({"name": "weather", "arguments": {"city": "Paris"}})
    assert found.reasoning == {"reasoning_content": "It may rain."}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (HERMES, "It rains."),
        (HERMES, hermes(PARIS)[:-20]),
        (HERMES, hermes({"name": "weather"})),
        (HERMES, hermes({"name": "weather", "arguments": "Paris"})),
        (HERMES, hermes(PARIS, {"name": "no such tool", "arguments": {}})),
        (OLD_MISTRAL, "[TOOL_CALLS] weather"),
        (LLAMA, 'The answer: {"name": "weather", "parameters": {}}'),
        (LLAMA, llama(PARIS) + '; {"name": "weather"'),
        ("a template of no known family", hermes(PARIS)),
    ],
)
def test_what_is_no_call_stays_text(tokenizer: Any, template: str, text: str):
    assert read(tokenizer, template, text) is None


def test_a_job_gets_the_calls_beside_the_text(tmp_path: Path):
    model = tiny_models.causal_gpt2(tmp_path, positions=700, template=tiny_models.TOOL_TEMPLATE)
    runner = runner_of("text-generation", model)
    written = "a b" + hermes(PARIS)
    params: Json = {"tools": TOOLS, "tool_calls": True, "do_sample": False, "max_new_tokens": 200, "chat": True}
    [outcome] = runner.run(["how is it?"], params | {"choices": [written, written * 2]}, RecordingMonitor())
    [text] = outcome.output
    assert text["generated_text"].startswith("a b")
    assert text["tool_calls"][0] == calls(PARIS)[0]
    [free] = runner.run(["how is it?"], params | {"max_new_tokens": 4}, RecordingMonitor())
    assert free.output[0]["tool_calls"] == []
    for wrong, words in (({"tools": []}, "needs tools"), ({"tools": [{}]}, "must be a list of objects"),
                         ({"return_full_text": True}, "return_full_text")):  # fmt: skip
        with pytest.raises(ModelError, match=words):
            runner.run(["how is it?"], params | wrong, RecordingMonitor())


def test_an_answer_is_what_the_response_template_of_a_tokenizer_reads(tmp_path: Path):
    runner = runner_of("text-generation", tiny_models.causal_gpt2(tmp_path))
    assert isinstance(runner, PipelineRunner)
    tokenizer = runner.task.tokenizer
    requests = OpenAIBatchRunner(runner, "text-generation", lambda task: (runner, {}), 400)
    options: Json = {"max_new_tokens": 20, "do_sample": False, "continue_final_message": False}
    request = {"messages": [{"role": "user", "content": "which city"}], "options": options}

    def choice() -> Json:
        [outcome] = requests.run([request], {}, RecordingMonitor())
        return outcome.output["choices"][0]

    text = choice()["text"]
    middle = text[len(text) // 2]
    fields = {"reasoning_content": {"open": middle, "content": "text"}, "content": {"content": "text"}}
    tokenizer.response_template = {"start_anchor": "assistant: ", "fields": fields}
    message = tokenizer.parse_response(text, prefix="")
    found = choice()
    assert found["text"] == message["content"] == text.partition(middle)[0].strip()
    assert found["reasoning_content"] == message["reasoning_content"]
    # A text that does not fit the template is the answer as it is.
    tokenizer.response_template["fields"]["reasoning_content"]["content"] = "json"
    assert choice() == {"text": text, "finish_reason": found["finish_reason"]}
