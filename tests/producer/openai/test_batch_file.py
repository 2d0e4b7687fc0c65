"""Lines of OpenAI's batch files: which become records, which fail alone, and what they ask of a runner."""

import json
from pathlib import Path

import pytest
from openai.types import Completion

from common.errors import UsageError
from common.jobs import JobSpec
from common.records import Failure, Json, Outcome, Record
from common.results import ResultRow
from producer.openai import check_batch_params, find_batch, read_batch, response_line

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
WAV = "data:audio/wav;base64,UklGRg=="


def function(name: str, parameters: Json) -> Json:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def image(url: Json) -> Json:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


def line(body: Json, url: str = "/v1/chat/completions", **more: Json) -> Json:
    return {"custom_id": "r1", "method": "POST", "url": url, "body": body, **more}


def read(directory: Path, *lines: Json, model: str | None = None) -> list[Record]:
    path = directory / "requests.jsonl"
    path.write_text("".join((text if isinstance(text, str) else json.dumps(text)) + "\n" for text in lines))
    batch = find_batch([str(path)], None, model, 10_000)
    return list(read_batch(batch, 10_000))


def options(directory: Path, **more: Json) -> Json:
    [record] = read(directory, line(CHAT | more))
    assert record.failure is None, record.failure
    return record.input["options"]


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, {}),
        ({"temperature": 0}, {"do_sample": False}),
        ({"temperature": 0, "n": 3}, {"do_sample": False}),
        ({"temperature": 0.5, "n": 3}, {"do_sample": True, "temperature": 0.5, "num_return_sequences": 3}),
        ({"max_tokens": 5}, {"max_new_tokens": 5}),
        ({"max_tokens": 5, "max_completion_tokens": 7}, {"max_new_tokens": 7}),
        ({"stop": "\n"}, {"stop_sequence": ["\n"]}),
        ({"stop": ["a", "b"]}, {"stop_sequence": ["a", "b"]}),
        ({"seed": 7, "top_p": 0.9, "top_k": -1, "min_p": 0.1}, {"seed": 7, "top_p": 0.9, "top_k": 0, "min_p": 0.1}),
        ({"user": "me", "priority": 3, "metadata": {"a": "b"}, "stream": False, "logprobs": None, "tools": []}, {}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 5}, {"logprobs": 5}),
        ({"tools": TOOLS}, {"tools": TOOLS, "tool_calls": True}),
        ({"tools": TOOLS, "tool_choice": "none"}, {}),
        ({"tools": TOOLS, "tool_choice": "required"}, {"tools": TOOLS}),
    ],
)
def test_parameters_become_options_of_the_runner(tmp_path: Path, fields: Json, wanted: Json):
    assert options(tmp_path, **fields) == wanted


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tools": [{"type": "function"}]}, "tools must be a list of"),
        ({"tools": [*TOOLS, *TOOLS]}, "two functions named 'weather'"),
        ({"tools": [function("f", {"type": "array"})]}, "must be a JSON schema of an object"),
        ({"tools": [function("f", {"properties": {"a": {"type": "strin"}}})]}, "json_schema.properties.a.type"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "time"}}}, "tools has weather"),
        ({"tool_choice": "required"}, "has no tools"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice must be"),
        ({"tools": TOOLS, "tool_choice": "required", "stop": "a"}, "stop cannot be combined with tool_choice"),
        (
            {"tools": TOOLS, "tool_choice": "required", "response_format": {"type": "json_object"}},
            "response_format and tool_choice each say",
        ),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs must be a whole number from 0 to 20"),
        ({"top_logprobs": 2}, "needs logprobs"),
        ({"logprobs": 3}, "logprobs must be true or false"),
        ({"stream": True}, "stream is not supported"),
        ({"response_format": {"type": "xml"}}, "response_format must be"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "response_format must be"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "strin"}}}},
            "json_schema.type: expected one of",
        ),
        ({"response_format": {"type": "json_object"}, "stop": "a"}, "stop cannot be combined with response_format"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "one of json, regex, choice"),
        ({"frequency_penalty": 0.5}, "frequency_penalty is not supported"),
        ({"temprature": 0.5}, "unknown parameter 'temprature'"),
        ({"temperature": 3}, "temperature must be a number from 0 to 2"),
        ({"max_tokens": "5"}, "max_tokens must be a whole number"),
        ({"n": 0}, "n must be a whole number"),
        ({"n": 1000}, "n must be at most 128"),
        ({"stop": [""]}, "stop must be"),
        ({"messages": []}, "messages must be"),
        ({"messages": image("https://example.com/a.png")}, "the URL 'https://example.com/a.png'; workers do not open"),
        ({"messages": image(None)}, "image_url must be a data: URL"),
        ({"messages": image("data:image/png;base64,AA=="), "tools": TOOLS}, "tools are not supported"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "parts of text and images"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "tool_calls of a message must be"),
        ({"model": "other"}, "model is 'other'; the first request of this batch is for 'm'"),
    ],
)
def test_an_unsupported_request_fails_alone(tmp_path: Path, fields: Json, words: str):
    good, bad = read(tmp_path, line(CHAT), line(CHAT | fields, custom_id="r2"))
    assert good.failure is None
    assert bad.id == "r2"
    assert bad.failure and bad.failure.code == "bad_request"
    assert words in bad.failure.message


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "bad_json"),
        ("7", "bad_request"),
        (line(CHAT, method="GET"), "bad_request"),
        (line(CHAT, url="/v1/images"), "bad_request"),
        (line(CHAT, url=["/v1/score"]), "bad_request"),
        (line(CHAT, custom_id=7), "bad_request"),
        (line("text"), "bad_request"),
        (line({"model": "m", "query": "a"}, url="/v1/rerank"), "bad_request"),
        (line({"model": "m", "query": "a", "documents": []}, url="/v1/rerank"), "bad_request"),
        (line({"model": "m", "text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, url="/v1/score"), "bad_request"),
        (line({"model": "m", "text_1": ["a", "b"]}, url="/v1/score"), "bad_request"),
        (line({"model": "m", "text_1": "a", "text_2": "b", "items": "c"}, url="/v1/score"), "bad_request"),
        (line({"model": "m", "file_url": "http://a/b.wav"}, url="/v1/audio/transcriptions"), "bad_request"),
        (line({"model": "m", "file_url": WAV, "prompt": "a"}, url="/v1/audio/transcriptions"), "bad_request"),
        (
            line({"model": "m", "file_url": WAV, "response_format": "srt"}, url="/v1/audio/transcriptions"),
            "bad_request",
        ),
    ],
)
def test_a_line_that_is_not_a_request_of_this_batch_fails_alone(tmp_path: Path, text: Json, code: str):
    good, bad = read(tmp_path, line(CHAT), text)
    assert good.failure is None
    assert bad.failure and bad.failure.code == code


def test_a_model_of_the_job_is_for_all_requests(tmp_path: Path):
    records = read(tmp_path, line(CHAT), line(CHAT | {"model": "other"}), model="org/mine")
    assert [record.failure for record in records] == [None, None]
    assert [record.input["model"] for record in records] == ["m", "other"]


def test_parts_of_text_are_joined_and_a_developer_speaks_for_the_system(tmp_path: Path):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts, "refusal": None}]
    [record] = read(tmp_path, line({"model": "m", "messages": messages}))
    assert record.input["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "ab"},
    ]


def test_what_else_a_message_says_reaches_the_chat_template(tmp_path: Path):
    more = {"name": "x", "tool_call_id": "t1", "reasoning_content": "because"}
    [record] = read(
        tmp_path, line({"model": "m", "messages": [{"role": "tool", "content": "5", "tool_calls": []} | more]})
    )
    assert record.input["messages"] == [{"role": "tool", "content": "5"} | more]


def test_a_tool_that_must_be_called_constrains_the_answer(tmp_path: Path):
    place = {"type": "object", "properties": {"of": {"$ref": "#/$defs/city"}}, "$defs": {"city": {"type": "string"}}}
    both = [function("a", place), function("b", place)]
    chosen = {"type": "function", "function": {"name": "a"}}
    one, any_of, single = read(
        tmp_path,
        *(line(CHAT | {"tools": both, "tool_choice": choice}) for choice in (chosen, "required")),
        line(CHAT | {"tools": both, "tool_choice": "required", "parallel_tool_calls": False}),
    )
    assert one.input["constraint"] == {"kind": "json_schema", "value": place}
    assert one.input["function"] == "a"
    schema = any_of.input["constraint"]["value"]
    assert schema["$defs"] == place["$defs"]  # they are found from the root of the schema
    assert [call["properties"]["name"] for call in schema["items"]["anyOf"]] == [{"const": "a"}, {"const": "b"}]
    assert any_of.input["calls"]
    assert "maxItems" not in schema
    assert single.input["constraint"]["value"]["maxItems"] == 1
    clashing = function("c", place | {"$defs": {"city": {"type": "integer"}}})
    [bad] = read(tmp_path, line(CHAT | {"tools": [*both, clashing], "tool_choice": "required"}))
    assert bad.failure and "different $defs named 'city'" in bad.failure.message
    for ref in ("#", "#/properties/y"):
        inner = function("d", {"properties": {"x": {"$ref": ref}, "y": {}}})
        [elsewhere] = read(tmp_path, line(CHAT | {"tools": [inner], "tool_choice": "required"}))
        assert elsewhere.failure and f'"$ref": "{ref}"' in elsewhere.failure.message


def test_calls_of_tools_in_messages_have_their_arguments_as_objects(tmp_path: Path):
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    asked = [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "5"}]
    [record] = read(tmp_path, line({"model": "m", "messages": asked}))
    [message, _] = record.input["messages"]
    assert message["content"] == ""
    assert message["tool_calls"][0]["function"]["arguments"] == {"city": "Oslo"}


def test_requests_for_several_urls_share_a_file_and_an_unknown_one_fails_with_its_line(tmp_path: Path):
    bodies = {
        "/v1/chat/completions": CHAT,
        "/v1/embeddings": {"model": "m", "input": "a"},
        "/v1/rerank": {"model": "m", "query": "a", "documents": ["b"]},
        "/v1/score": {"model": "m", "text_1": "a", "text_2": ["b", "c"]},
        "/v1/audio/transcriptions": {"model": "m", "file_url": WAV},
        "/v2/rerank": {"model": "m", "query": "a", "documents": ["b"]},
        "/score": {"model": "m", "data_1": "a", "data_2": "b"},
        "/v1/images": {"model": "m"},
    }
    *records, unknown = read(tmp_path, *(line(body, url) for url, body in bodies.items()))
    assert [record.input["task"] for record in records] == [
        "text-generation", "embedding", "rerank", "rerank", "automatic-speech-recognition", "rerank", "rerank",
    ]  # fmt: skip
    assert [record.input["url"] for record in records[-2:]] == ["/v1/rerank", "/v1/score"]
    assert unknown.failure and "line 8: url must be one of" in unknown.failure.message


def test_chats_with_images_are_for_models_that_see(tmp_path: Path):
    seen = image("data:image/png;base64,AA==")
    first, second = read(tmp_path, line(CHAT), line({"model": "m", "messages": seen}))
    assert [record.input["task"] for record in (first, second)] == ["text-generation", "image-text-to-text"]
    assert first.input["messages"][0]["content"] == "hello"
    # The model of a job that begins with an image answers the chats without one, too.
    first, second = read(tmp_path, line({"model": "m", "messages": seen}), line(CHAT))
    assert [record.input["task"] for record in (first, second)] == ["image-text-to-text"] * 2
    assert second.input["messages"][0]["content"] == [{"type": "text", "text": "hello"}]


@pytest.mark.parametrize(
    ("text", "task", "words"),
    [
        ("\n", None, "no line is a request"),
        ("{}\n", None, "custom_id is missing"),
        ('{"custom_id": "0", "url": "/v1/chat/completions", "body": {}}\n', None, "line 1: method missing; expected"),
        (json.dumps(line(CHAT)), "embedding", "which is text-generation or image-text-to-text"),
        (json.dumps(line({"messages": []})), None, "names no model"),
    ],
)
def test_a_file_that_is_not_a_batch_of_the_task_is_refused(tmp_path: Path, text: str, task: str | None, words: str):
    path = tmp_path / "requests.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=words):
        find_batch([str(path)], task, None, 10_000)


@pytest.mark.parametrize(
    ("outcome", "status", "code"),
    [
        (Outcome(failure=Failure("bad_request", "no")), 400, "bad_request"),
        (Outcome(failure=Failure("worker_died", "no")), 500, "worker_died"),
        (None, None, "not_run"),
    ],
)
def test_an_error_replaces_its_response(outcome: Outcome | None, status: int | None, code: str):
    spec = JobSpec("0" * 12, "text-generation", "m", format="openai")
    found = json.loads(response_line(spec, 0, ResultRow("r1", {}, outcome)))
    assert found["custom_id"] == "r1"
    assert found["error"]["code"] == code
    response = found["response"]
    assert (response and response["status_code"]) == status
    if response:
        assert response["body"]["error"]["code"] == code
    assert response_line(spec, 0, ResultRow("r1", {}, outcome)) != response_line(spec, 1, ResultRow("r1", {}, outcome))


@pytest.mark.parametrize(
    ("task", "name", "words"),
    [
        ("embedding", "precision", "one vector of floats"),
        ("rerank", "top_k", "top_n of a request"),
        ("text-generation", "top_k", None),
    ],
)
def test_a_parameter_whose_outputs_have_no_form_in_a_response_is_refused(task: str, name: str, words: str | None):
    spec = JobSpec("0" * 12, task, "m", params={name: 1}, format="openai")
    if words is None:
        check_batch_params(spec)
        return
    with pytest.raises(UsageError, match=f"-p {name} cannot be combined .*{words}"):
        check_batch_params(spec)


def test_the_chosen_token_of_a_completion_is_among_the_likely_ones():
    token = {"token": " b", "logprob": -2.0, "top_logprobs": [{"token": " a", "logprob": -0.5}]}
    choice = {"text": " b", "finish_reason": "stop", "logprobs": [token]}
    request = {"url": "/v1/completions", "model": "m"}
    output = {"choices": [choice], "prompt_tokens": 1, "completion_tokens": 2}
    row = ResultRow("r1", request, Outcome(output))
    body = json.loads(response_line(JobSpec("0" * 12, "text-generation", "m", format="openai"), 0, row))["response"]
    [found] = Completion.model_validate(body["body"]).choices
    assert found.logprobs and found.logprobs.top_logprobs == [{" a": -0.5, " b": -2.0}]
