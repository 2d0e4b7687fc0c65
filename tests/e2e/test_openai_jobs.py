"""OpenAI's batch files from the command line through a real queue: what `openai`'s own types make of the responses."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.records import Json
from tests.support import tiny_models
from tests.support.cli_processes import Queue, running_queue
from tests.support.pipeline_reference import run
from tests.support.processes import lines


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
    with running_queue(folder, HUGQUEUE_MODEL_ROOTS=str(folder), HUGQUEUE_MAX_NEW_TOKENS="40") as found:
        yield found


def ask(queue: Queue, url: str, bodies: list[Json], status: int = 0, **more: Json) -> list[Json]:
    """Submit a batch of these bodies; return the response lines."""
    requests = [
        {"custom_id": f"r{number}", "method": "POST", "url": url, "body": more | body}
        for number, body in enumerate(bodies)
    ]
    path = queue.write("requests.jsonl", *map(json.dumps, requests))
    queue.run("submit", "--format", "openai", path, "-o", "responses.jsonl", status=status)
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
    bodies += [{"prompt": "i go", "max_tokens": 41}, {"prompt": "news " * 200}, {"prompt": ""}]
    bodies += [{"prompt": "i go", "max_tokens": 20, "n": 3, "temperature": 1}]
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
