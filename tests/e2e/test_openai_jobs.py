"""OpenAI's batch files from the command line through a real queue: what `openai`'s own types make of the responses."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.audio import Transcription
from openai.types.chat import ChatCompletion
from sentence_transformers import CrossEncoder
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.records import Json
from tests.support import tiny_media, tiny_models, tiny_multimodal, tiny_sentence_transformers
from tests.support.cli_processes import Queue, running_queue
from tests.support.pipeline_reference import pipeline_outputs, run
from tests.support.processes import lines
from workers.inference.tasks.audio import decode_audio


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("openai")


@pytest.fixture(scope="module")
def causal(folder: Path) -> Path:
    return tiny_models.causal_gpt2(folder / "causal")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Path:
    return tiny_models.masked_bert(folder / "encoder")


@pytest.fixture(scope="module")
def queue(folder: Path):
    with running_queue(folder, HUGQUEUE_MODEL_ROOTS=str(folder), HUGQUEUE_MAX_NEW_TOKENS="400") as found:
        yield found


def ask(queue: Queue, url: str, bodies: list[Json], status: int = 0, **more: Json) -> list[Json]:
    """Submit a batch of these bodies; return the response lines."""
    return submit(queue, [(url, more | body) for body in bodies], status)


def submit(queue: Queue, asked: list[tuple[str, Json]], status: int = 0, *options: str) -> list[Json]:
    """Submit a batch of these urls and bodies; return the response lines."""
    requests = [
        {"custom_id": f"r{number}", "method": "POST", "url": url, "body": body}
        for number, (url, body) in enumerate(asked)
    ]
    path = queue.write("requests.jsonl", *map(json.dumps, requests))
    queue.run("submit", "--format", "openai", path, "-o", "responses.jsonl", *options, status=status)
    found = lines((queue.directory / "responses.jsonl").read_text())
    assert [line["custom_id"] for line in found] == [request["custom_id"] for request in requests]
    return found


def body(line: Json) -> Json:
    assert line["error"] is None
    assert line["id"].startswith("batch_req_")
    assert line["response"]["status_code"] == 200
    return line["response"]["body"]


def greedy(model: Path, prompt: str, tokens: int) -> tuple[str, int, int]:
    """Return the text that `generate` writes for a prompt, and how many tokens were read and written."""
    tokenizer, causal = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    inputs = tokenizer(prompt, return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    with torch.inference_mode():
        ids = causal.generate(**inputs, max_new_tokens=tokens, do_sample=False)[0, length:]
    return tokenizer.decode(ids, skip_special_tokens=True), length, len(ids)


PROMPTS = ("the capital of france", "i go", "the old cat likes the small bird and")


@pytest.fixture(scope="module")
def completions(queue: Queue, causal: Path) -> list[Json]:
    """The responses to one batch of completions."""
    bodies: list[Json] = [{"prompt": PROMPTS[0]}, {"prompt": PROMPTS[1:], "max_tokens": 5}]
    bodies += [{"prompt": PROMPTS[1], "echo": True}, {"prompt": "i go", "stop": greedy(causal, "i go", 16)[0][3:5]}]
    bodies += [{"prompt": "i go", "max_tokens": 401}, {"prompt": "news " * 200}, {"prompt": ""}]
    bodies += [{"prompt": "i go", "max_tokens": 200, "n": 3, "temperature": 1}]
    return ask(queue, "/v1/completions", bodies, status=3, model=str(causal), temperature=0)


def test_completions_are_what_generate_writes(completions: list[Json], causal: Path) -> None:
    first, second, third = (Completion.model_validate(body(line)) for line in completions[:3])
    text, read, written = greedy(causal, PROMPTS[0], 16)
    assert [choice.text for choice in first.choices] == [text]
    assert first.usage and first.usage.prompt_tokens == read
    assert (first.usage.completion_tokens, first.usage.total_tokens) == (written, read + written)
    assert first.choices[0].finish_reason == "length"
    assert first.model == str(causal)
    both = [greedy(causal, prompt, 5) for prompt in PROMPTS[1:]]
    assert [choice.text for choice in second.choices] == [text for text, _, _ in both]
    assert [choice.index for choice in second.choices] == [0, 1]
    assert second.usage and second.usage.prompt_tokens == sum(read for _, read, _ in both)
    assert third.choices[0].text == PROMPTS[1] + greedy(causal, PROMPTS[1], 16)[0]


def test_stop_texts_end_an_answer_and_are_not_in_it(completions: list[Json], causal: Path) -> None:
    text = greedy(causal, "i go", 16)[0]
    [choice] = Completion.model_validate(body(completions[3])).choices
    assert choice.text == text[: text.index(text[3:5])]
    assert choice.finish_reason == "stop"


def test_requests_that_ask_for_too_much_fail_alone(completions: list[Json]) -> None:
    assert [line["error"] and line["error"]["code"] for line in completions] == [
        *[None] * 4, "too_many_tokens", "context_length_exceeded", "empty_text", "too_many_tokens",
    ]  # fmt: skip
    assert completions[4]["response"]["body"]["error"]["type"] == "invalid_request_error"


def test_results_gives_the_response_lines_again(queue: Queue, completions: list[Json]) -> None:
    job = json.loads(queue.run("jobs", "--json").stdout)[-1]["id"]
    assert lines(queue.run("results", job).stdout) == completions


def test_chats_answer_with_a_message_each(queue: Queue, causal: Path) -> None:
    messages = [{"role": "user", "content": "which city"}, {"role": "assistant", "content": "berlin"}]
    bodies = [{"messages": messages, "temperature": 0}, {"messages": messages[:1], "n": 3, "seed": 4}]
    bodies += [bodies[1], {"messages": messages[:1], "temperature": 0, "n": 2}]
    found = ask(queue, "/v1/chat/completions", bodies, model=str(causal), max_completion_tokens=6)
    plain, sampled, again, alike = (ChatCompletion.model_validate(body(line)) for line in found)
    tokenizer = AutoTokenizer.from_pretrained(causal)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    text, read, written = greedy(causal, prompt, 6)
    assert plain.choices[0].message.content == text
    assert plain.usage and (plain.usage.prompt_tokens, plain.usage.completion_tokens) == (read, written)
    texts = [choice.message.content for choice in sampled.choices]
    assert len(set(texts)) == 3
    assert [choice.message.content for choice in again.choices] == texts
    assert sampled.usage and sampled.usage.completion_tokens == 18
    assert alike.choices[0].message.content == alike.choices[1].message.content


def test_answers_have_the_form_that_each_request_asks_for(queue: Queue, causal: Path) -> None:
    messages = [{"role": "user", "content": "which city"}]
    schema = {"type": "object", "properties": {"big": {"type": "boolean"}}, "required": ["big"]}
    named = {"name": "city", "schema": {**schema, "additionalProperties": False}, "strict": True}
    formats: list[Json] = [{"type": "json_schema", "json_schema": named}, {"type": "text"}]
    formats += [{"type": "json_schema", "json_schema": {"name": "none", "schema": {"enum": []}}}]
    formats += [{"type": "json_schema", "json_schema": {"name": "long", "schema": {"const": "which city " * 20}}}]
    bodies: list[Json] = [{"messages": messages, "response_format": one, "seed": 1} for one in formats]
    bodies += [
        {"messages": messages, "structured_outputs": {"choice": ["yes", "no"]}, "n": 3, "max_completion_tokens": 6}
    ]
    found = ask(queue, "/v1/chat/completions", bodies, status=3, model=str(causal), max_tokens=40)
    assert [line["error"] and line["error"]["code"] for line in found] == [None, None, "bad_param", None, None]
    shaped, _, long, chosen = (ChatCompletion.model_validate(body(line)) for line in found if not line["error"])
    assert list(json.loads(shaped.choices[0].message.content or "")) == ["big"]
    assert shaped.choices[0].finish_reason == "stop"
    assert long.choices[0].finish_reason == "length"
    assert {choice.message.content for choice in chosen.choices} <= {"yes", "no"}


def test_embeddings_are_those_of_the_task(queue: Queue, encoder: Path) -> None:
    texts = ["the capital of france is paris.", "i go to school", "cats"]
    bodies: list[Json] = [{"input": texts}, {"input": texts[0], "encoding_format": "base64"}]
    bodies += [{"input": texts[1], "dimensions": 8}, {"input": texts[1], "dimensions": 1000}]
    found = ask(queue, "/v1/embeddings", bodies, status=3, model=str(encoder))
    expected = [outcome.output for outcome in run("embedding", encoder, texts)]
    several, short = (CreateEmbeddingResponse.model_validate(body(line)) for line in (found[0], found[2]))
    assert [item.index for item in several.data] == [0, 1, 2]
    np.testing.assert_allclose([item.embedding for item in several.data], expected, atol=1e-6)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    assert several.usage.prompt_tokens == sum(len(tokenizer(text)["input_ids"]) for text in texts)
    vector = np.frombuffer(base64.b64decode(body(found[1])["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(vector, expected[0], atol=1e-6)
    cut = expected[1][:8] / np.linalg.norm(expected[1][:8])
    np.testing.assert_allclose(short.data[0].embedding, cut, atol=1e-6)
    assert found[3]["error"]["code"] == "bad_param"
    assert found[3]["response"]["status_code"] == 400


CITY = {"type": "object", "properties": {"city": {"enum": ["oslo", "rome"]}}, "required": ["city"]}
CITY["additionalProperties"] = False
TOOLS: Json = [
    {"type": "function", "function": {"name": name, "description": "it", "parameters": CITY}}
    for name in ("weather", "time")
]


@pytest.fixture(scope="module")
def caller(folder: Path) -> Path:
    """A model with a chat template that shows tools."""
    return tiny_models.causal_gpt2(folder / "caller", positions=900, template=tiny_models.TOOL_TEMPLATE)


def test_a_tool_that_must_be_called_is_called(queue: Queue, caller: Path) -> None:
    weather = {"type": "function", "function": {"name": "weather"}}
    bad = [{"type": "function", "function": {"name": "odd", "parameters": {"properties": {"a": {"enum": []}}}}}]
    bad[0]["function"]["parameters"]["required"] = ["a"]  # type: ignore[index]
    written = '<tool_call>{"name": "time", "arguments": {"city": "rome"}}</tool_call>'
    bodies: list[Json] = [
        {"tool_choice": weather, "n": 2},
        {"tool_choice": "required"},
        {"structured_outputs": {"choice": [written * 2, written * 3]}, "max_tokens": 400},
        {"structured_outputs": {"choice": [written * 2, written * 3]}, "max_tokens": 400, "parallel_tool_calls": False},
        {"structured_outputs": {"choice": [written.replace("time", "date")] * 2}, "max_tokens": 300},
        {"tool_choice": "none"},
        {"tool_choice": "required", "max_tokens": 5},
        {"tools": bad, "tool_choice": "required"},
    ]
    asked: list[Json] = [{"tools": TOOLS, "seed": 3, "max_tokens": 200} | one for one in bodies]
    messages = [{"role": "user", "content": "how is it in oslo?"}]
    requests: list[tuple[str, Json]] = [
        ("/v1/chat/completions", {"model": str(caller), "messages": messages} | one) for one in asked
    ]
    *found, refused = submit(queue, requests, 3, "-p", "dtype=float32")
    named, required, auto, single, unknown, free, cut = (ChatCompletion.model_validate(body(one)) for one in found)
    for choice in named.choices:
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        [call] = choice.message.tool_calls or []
        assert call.type == "function"
        assert call.function.name == "weather"
        assert json.loads(call.function.arguments)["city"] in ("oslo", "rome")
    calls = required.choices[0].message.tool_calls or []
    assert calls
    assert all(call.type == "function" and call.function.name in ("weather", "time") for call in calls)
    [choice] = auto.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    calls = choice.message.tool_calls or []
    assert len(calls) >= 2
    assert len({call.id for call in calls}) == len(calls)
    assert next(json.loads(call.function.arguments) for call in calls if call.type == "function") == {"city": "rome"}
    assert len(single.choices[0].message.tool_calls or []) == 1
    # A tool that the request does not have is not called: the text is an answer.
    assert unknown.choices[0].message.tool_calls is None
    assert "date" in (unknown.choices[0].message.content or "")
    assert free.choices[0].message.tool_calls is None
    assert (cut.choices[0].finish_reason, cut.choices[0].message.tool_calls) == ("length", None)
    assert refused["error"]["code"] == "bad_param"


def test_calls_and_what_they_returned_are_part_of_the_chat(queue: Queue, causal: Path, caller: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "oslo"}'}}
    messages: list[Json] = [
        {"role": "user", "content": "how is it?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "cold", "tool_call_id": "c1"},
    ]
    asked: Json = {"model": str(caller), "messages": messages, "temperature": 0, "max_tokens": 5, "tools": TOOLS}
    [line] = ask(queue, "/v1/chat/completions", [asked])
    found = ChatCompletion.model_validate(body(line))
    as_object = {**call, "function": {"name": "weather", "arguments": {"city": "oslo"}}}
    shown = [messages[0], {**messages[1], "content": "", "tool_calls": [as_object]}, messages[2]]
    prompt = AutoTokenizer.from_pretrained(caller).apply_chat_template(
        shown, tools=TOOLS, add_generation_prompt=True, tokenize=False
    )
    assert "weather(oslo)" in prompt
    text, read, _ = greedy(caller, prompt, 5)
    assert found.choices[0].message.content == text
    assert found.usage and found.usage.prompt_tokens == read
    # A model whose template has no place for them does not see tools.
    [line] = ask(queue, "/v1/chat/completions", [asked | {"model": str(causal)}], status=3)
    assert line["error"]["code"] == "bad_param"
    assert "no place for tools" in line["error"]["message"]


def test_log_probabilities_are_those_of_the_model(queue: Queue, causal: Path) -> None:
    messages = [{"role": "user", "content": "which city"}]
    asked: Json = {"model": str(causal), "temperature": 0, "max_tokens": 4}
    chat = ("/v1/chat/completions", asked | {"messages": messages, "logprobs": True, "top_logprobs": 3})
    bare = ("/v1/chat/completions", asked | {"messages": messages, "logprobs": True})
    text = ("/v1/completions", asked | {"prompt": PROMPTS[0], "logprobs": 2})
    many = ("/v1/chat/completions", asked | {"messages": messages, "logprobs": True, "top_logprobs": 21})
    first, second, third, refused = submit(queue, [chat, bare, text, many], 3)
    tokenizer, model = AutoTokenizer.from_pretrained(causal), AutoModelForCausalLM.from_pretrained(causal)

    def expected(prompt: str) -> list[tuple[float, list[float]]]:
        inputs = tokenizer(prompt, return_tensors="pt")
        given = model.generate(
            **inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_scores=True
        )
        scores = torch.stack(given.scores, dim=1)[0].log_softmax(dim=-1)
        tokens = given.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        return [
            (scores[step, token].item(), scores[step].topk(3).values.tolist())
            for step, token in enumerate(tokens)
            if token != tokenizer.eos_token_id
        ]

    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    chat_logprobs = ChatCompletion.model_validate(body(first)).choices[0].logprobs
    assert chat_logprobs and chat_logprobs.content
    for token, (logprob, top) in zip(chat_logprobs.content, expected(prompt), strict=True):
        assert token.logprob == pytest.approx(logprob, abs=1e-4)
        assert [one.logprob for one in token.top_logprobs] == pytest.approx(top, abs=1e-4)
        assert token.bytes is None or bytes(token.bytes).decode() == token.token
    alone = ChatCompletion.model_validate(body(second)).choices[0].logprobs
    assert alone and alone.content and [one.top_logprobs for one in alone.content] == [[]] * len(alone.content)
    written = Completion.model_validate(body(third)).choices[0].logprobs
    assert written and written.token_logprobs and written.text_offset
    assert written.token_logprobs == pytest.approx([one for one, _ in expected(PROMPTS[0])], abs=1e-4)
    assert written.text_offset[0] == 0
    assert "from 0 to 20" in refused["error"]["message"]


def test_documents_are_ranked_and_pairs_are_scored(queue: Queue, folder: Path) -> None:
    model = tiny_sentence_transformers.reranker(folder / "reranker")
    documents = ["the cat sleeps", "news", "the old cat likes the small bird", "paris"]
    asked: list[tuple[str, Json]] = [
        ("/v1/rerank", {"query": "where is the cat", "documents": documents, "top_n": 2}),
        ("/v1/rerank", {"query": "where is the cat", "documents": documents}),
        ("/v1/score", {"text_1": "where is the cat", "text_2": documents}),
        ("/v1/score", {"queries": documents, "items": documents[::-1]}),
        ("/v1/rerank", {"query": "where is the cat"}),
        ("/v1/rerank", {"query": "a", "documents": ["the cat " * 200]}),
    ]
    found = submit(queue, [(url, {"model": str(model)} | one) for url, one in asked], 3)
    encoder = CrossEncoder(str(model), device="cpu")
    first, every, score, pairs = (body(one) for one in found[:4])
    expected = encoder.predict([("where is the cat", document) for document in documents]).tolist()
    assert score["object"] == "list"
    assert [one["score"] for one in score["data"]] == pytest.approx(expected, abs=1e-5)
    assert [(one["index"], one["object"]) for one in score["data"]] == [(n, "score") for n in range(4)]
    order = sorted(range(4), key=lambda number: -expected[number])
    assert [one["index"] for one in every["results"]] == order
    assert [one["document"]["text"] for one in every["results"]] == [documents[number] for number in order]
    assert [one["relevance_score"] for one in every["results"]] == pytest.approx(sorted(expected)[::-1], abs=1e-5)
    assert first["results"] == every["results"][:2]
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokens = sum(len(tokenizer("where is the cat", document)["input_ids"]) for document in documents)
    assert every["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    side_by_side = encoder.predict(list(zip(documents, documents[::-1], strict=True))).tolist()
    assert [one["score"] for one in pairs["data"]] == pytest.approx(side_by_side, abs=1e-5)
    assert [one["error"]["code"] for one in found[4:]] == ["bad_request", "context_length_exceeded"]


def data_url(kind: str, blob: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(blob).decode()}"


def test_recordings_are_transcribed(queue: Queue, folder: Path) -> None:
    model = tiny_media.spoken(folder / "spoken")
    sound = tiny_media.sound_bytes(tiny_media.samples(0.5, 3))
    bodies: list[Json] = [
        {"file_url": data_url("audio/wav", sound)},
        {"file_url": data_url("audio/wav", sound), "response_format": "text"},
        {"file_url": "https://example.com/a.wav"},
        {"file_url": data_url("audio/wav", b"no sound")},
        {"file_url": "data:audio/wav;base64,?"},
        {"file_url": data_url("audio/wav", sound), "language": "en"},  # for models such as Whisper
    ]
    found = ask(queue, "/v1/audio/transcriptions", bodies, status=3, model=str(model))
    [expected] = pipeline_outputs("automatic-speech-recognition", model, [decode_audio(sound, 16_000)])
    answer = Transcription.model_validate(body(found[0]))
    assert answer.text == expected["text"]
    assert answer.usage and answer.usage.model_dump() == {"type": "duration", "seconds": 1}
    assert body(found[1]) == expected["text"]
    assert [one["error"]["code"] for one in found[2:]] == ["bad_request", "bad_audio", "wrong_type", "bad_param"]


def test_chats_may_hold_images(queue: Queue, folder: Path) -> None:
    model = tiny_multimodal.llava(folder / "llava")
    blob = tiny_media.image_bytes(40, 30, 1)

    def about(url: str) -> list[Json]:
        parts: list[Json] = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "a dog?"}]
        return [{"role": "user", "content": parts}]

    plain = [{"role": "user", "content": "the old house"}]
    choices: Json = {"structured_outputs": {"choice": ["yes", "no"]}}
    bodies: list[Json] = [{"messages": about(data_url("image/png", blob))}, {"messages": plain}]
    bodies += [bodies[0] | choices, bodies[0] | {"logprobs": True}]
    bodies += [{"messages": about("https://example.com/a.png")}, {"messages": about(data_url("image/png", b"none"))}]
    found = ask(
        queue, "/v1/chat/completions", bodies, status=3, model=str(model), temperature=0, max_completion_tokens=8
    )
    image, text, chosen, told = (ChatCompletion.model_validate(body(one)) for one in found[:4])
    params: Json = {"do_sample": False, "max_new_tokens": 8, "usage": True}
    records: list[Json] = [{"messages": bodies[0]["messages"]}, {"messages": plain}]
    for response, outcome in zip((image, text), run("image-text-to-text", model, records, **params), strict=True):
        [wanted] = outcome.output
        assert response.choices[0].message.content == wanted["generated_text"]
        assert response.usage and response.usage.prompt_tokens == wanted["prompt_tokens"]
    assert chosen.choices[0].message.content in ("yes", "no")
    assert told.choices[0].logprobs and told.choices[0].logprobs.content
    assert [one["error"]["code"] for one in found[4:]] == ["bad_request", "bad_image"]


def test_one_model_answers_several_urls_of_a_file(queue: Queue, causal: Path) -> None:
    short: Json = {"temperature": 0, "max_tokens": 4}
    bodies: dict[str, Json] = {
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "which city"}], **short},
        "/v1/completions": {"prompt": PROMPTS[0], **short},
        "/v1/embeddings": {"input": PROMPTS[0]},
        "/v1/images/generations": {"prompt": "a cat"},
        "/v1/rerank": {"query": "a", "documents": ["b"]},
    }
    asked = [(url, {"model": str(causal), **one}) for url, one in bodies.items()]
    chat, completion, embedding, unknown, rerank = submit(queue, asked, 3)
    assert Completion.model_validate(body(completion)).choices[0].text == greedy(causal, PROMPTS[0], 4)[0]
    assert ChatCompletion.model_validate(body(chat)).choices[0].message.content
    [expected] = run("embedding", causal, [PROMPTS[0]])
    [vector] = CreateEmbeddingResponse.model_validate(body(embedding)).data
    np.testing.assert_allclose(vector.embedding, expected.output, atol=1e-6)
    assert "line 4" in unknown["error"]["message"]
    assert rerank["error"]["code"] == "missing_weights"  # of a head that it does not have
    # A job of vectors has other answers beside them.
    first, chat, completion = submit(queue, [asked[2], *asked[:2]])
    np.testing.assert_allclose(body(first)["data"][0]["embedding"], expected.output, atol=1e-6)
    assert Completion.model_validate(body(completion)).choices[0].text == greedy(causal, PROMPTS[0], 4)[0]
