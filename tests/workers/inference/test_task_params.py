"""The table of parameters agrees with what runs: every runner, the pipelines of transformers, and `GenerationConfig`.

One that a runner heeds and that is not declared could not be given; one declared and not heeded would do nothing.
"""

import ast
import inspect
import json
from typing import Any

import pytest
from transformers import GenerationConfig

from common.errors import ModelError, UsageError
from common.jobs import DTYPES
from common.params import check_params, parse_params
from common.records import Json
from common.task_params import (
    ANSWER_GENERATE_PARAMS,
    GENERATE_PARAMS,
    LOAD_PARAMS,
    POOLING_MODES,
    SPEECH_GENERATE_PARAMS,
    TASK_PARAMS,
)
from common.tasks import TASKS, Task
from producer.openai import sampling_params as sampling
from workers.inference.embedding import prompts
from workers.inference.embedding.pooling import _POOLINGS
from workers.inference.generation import translation
from workers.inference.loading import dtypes as precision
from workers.inference.tasks import embedding, pair_runner, question_answering, rerank, seq2seq, vector_runner
from workers.inference.tasks.pipeline_runner import PIPELINE_TASKS
from workers.inference.tasks.pipeline_task import PipelineTask
from workers.inference.tasks.runners import RUNNERS, find_runner

PROCESSOR_RUNNERS = {find_runner(name) for name in TASKS if hasattr(find_runner(name), "tasks")}
_CHAT_PARAMS = GENERATE_PARAMS.keys() | {
    "chat", "choices", "json_schema", "logprobs", "regex", "seed", "system", "usage",
}  # fmt: skip
PIPELINES: dict[str, type[PipelineTask[Any]]] = {
    **PIPELINE_TASKS,
    **{task.name: task for runner in PROCESSOR_RUNNERS for task in runner.tasks},
}
#: What the pipeline hands on as it is: to the tokenizer, or to `generate`; and what it never sees.
ELSEWHERE = {
    "text-classification": {"truncation", "max_length"},
    "zero-shot-object-detection": {"candidate_labels"},
    "any-to-any": _CHAT_PARAMS,
    "image-text-to-text": _CHAT_PARAMS | {"text"},
    "text-to-audio": TASK_PARAMS["text-to-audio"].keys(),
    "visual-question-answering": {"question"} | ANSWER_GENERATE_PARAMS.keys(),
    "document-question-answering": {"question"} | ANSWER_GENERATE_PARAMS.keys(),
    "text-generation": _CHAT_PARAMS | {"tool_calls"},
    "automatic-speech-recognition": SPEECH_GENERATE_PARAMS.keys(),
}


def test_every_task_with_a_runner_declares_its_parameters_and_no_other() -> None:
    assert TASK_PARAMS.keys() == RUNNERS.keys() == TASKS.keys()


@pytest.mark.parametrize("task", sorted(PIPELINES))
def test_every_declared_parameter_is_one_of_the_pipeline(task: str) -> None:
    taken = set(inspect.signature(PIPELINES[task].pipeline_class._sanitize_parameters).parameters)
    source = inspect.getsource(PIPELINES[task].pipeline_class)  # some are taken out of `**kwargs` by name
    taken |= {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)} - {None}
    assert TASK_PARAMS[task].keys() - ELSEWHERE.get(task, set()) <= taken


@pytest.mark.parametrize(
    ("task", "modules"),
    [
        ("embedding", (embedding, vector_runner, prompts)),
        ("question-answering", (question_answering,)),
        ("rerank", (rerank, pair_runner, prompts)),
        ("translation", (seq2seq, translation)),
    ],
)
def test_every_declared_parameter_is_read_by_a_runner_of_our_own(task: str, modules: tuple[Any, ...]) -> None:
    sources = [ast.parse(inspect.getsource(module)) for module in modules]
    named = {node.value for source in sources for node in ast.walk(source) if isinstance(node, ast.Constant)}
    assert TASK_PARAMS[task].keys() - GENERATE_PARAMS.keys() <= named


def test_every_parameter_of_generate_is_a_field_of_generation_config() -> None:
    assert GENERATE_PARAMS.keys() <= vars(GenerationConfig()).keys()


def test_poolings_and_dtypes_are_those_declared() -> None:
    assert set(POOLING_MODES) == _POOLINGS.keys()
    assert set(DTYPES) == {precision.AUTO, precision.INT8, precision.FLOAT8, *precision.DTYPES}


def test_options_of_openai_requests_are_declared() -> None:
    body = {"temperature": 2, "top_k": 3, "seed": 1, "stop": "a", "top_p": 1, "min_p": 0, "repetition_penalty": 2}
    lengths = {"max_completion_tokens": 3, "min_tokens": 1}
    assert {*body, *lengths, "n", "max_tokens"} == sampling.KNOWN
    options = sampling.options_of(body | lengths)
    sampling.set_answer_count({"n": 2}, options)
    checked = check_params("text-generation", TASK_PARAMS["text-generation"], {**sampling.DEFAULTS, **options})
    assert type(checked["temperature"]) is float  # transformers takes no whole number
    check_params("embedding", TASK_PARAMS["embedding"], {"truncate_dim": 3, "normalize": True})


# How text becomes a value


@pytest.mark.parametrize(
    ("task", "text", "value"),
    [
        ("text-classification", "function_to_apply=none", "none"),
        ("token-classification", "aggregation_strategy=none", "none"),
        ("fill-mask", "targets=1990", "1990"),
        ("fill-mask", "targets=[1990, 2e3]", ["1990", "2e3"]),
        ("fill-mask", "targets=null", "null"),
        ("zero-shot-classification", "candidate_labels=2020", "2020"),
        ("zero-shot-classification", "candidate_labels=2020,2021", "2020,2021"),
        ("zero-shot-classification", "candidate_labels=true", "true"),
        ("zero-shot-classification", "multi_label=True", True),
        ("text-generation", "stop_sequence=5", "5"),
        ("text-generation", 'stop_sequence=["\\n", "."]', ["\n", "."]),
        ("text-generation", "prefix=[1] ", "[1] "),
        ("text-generation", "temperature=2", 2.0),
        ("text-generation", "early_stopping=never", "never"),
        ("text-generation", "early_stopping=true", True),
        ("text-classification", "top_k=null", None),
        ("text-classification", "top_k=None", None),
        ("text-classification", "truncation=only_first", "only_first"),
        ("text-classification", "truncation=false", False),
        ("embedding", "prompt=null", "null"),
        ("embedding", "pooling=cls+mean", "cls+mean"),
        ("embedding", "dtype=int8", "int8"),
        ("translation", "src_lang=no", "no"),
        ("automatic-speech-recognition", "return_timestamps=word", "word"),
    ],
)
def test_the_text_of_a_parameter_is_read_by_its_declared_type(task: str, text: str, value: Json) -> None:
    declared = TASKS[task].params
    assert declared is not None
    [found] = check_params(task, declared, parse_params([text], declared)).values()
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("task", "text", "words"),
    [
        ("fill-mask", "topk=1", ["fill-mask has no parameter 'topk'", "top_k"]),
        ("fill-mask", "Top-K=1", ["top_k"]),
        ("fill-mask", "top_k=null", ["top_k must be a whole number of at least 1", "None"]),
        ("fill-mask", "top_k=1.5", ["1.5"]),
        ("fill-mask", f"top_k={2**63}", ["top_k"]),
        ("text-generation", "top_p=2", ["top_p must be a number from 0 to 1", "2"]),
        ("text-generation", f"temperature={10**400}", ["a number above 0"]),
        ("text-generation", f"length_penalty=-{10**400}", ["a number"]),
        ("text-generation", "temperature=NaN", ["a number above 0", "NaN"]),
        ("text-generation", "typical_p=0", ["a number above 0, at most 1"]),
        ("text-generation", "bad_words_ids=[[]]", ["a list of lists of token ids"]),
        ("text-generation", "tools=[1]", ["a list of objects"]),
        ("token-classification", "aggregation_strategy=null", ["none, simple, first"]),
        ("zero-shot-classification", "candidate_labels= , ", ["at least one label"]),
        ("zero-shot-image-classification", "hypothesis_template=a photo", ["a text with one {}", "'a photo'"]),
        ("zero-shot-classification", "hypothesis_template={:>9999999999}", ["a text with one {}"]),
        ("zero-shot-classification", "hypothesis_template={0.__class__}", ["a text with one {}"]),
        ("embedding", "ignore_auto_map=1", ["ignore_auto_map must be true or false"]),
        ("embedding", "dtype=float4", ["dtype must be one of auto"]),
        ("embedding", "pooling=middle", ["several joined by +"]),
    ],
)
def test_a_parameter_that_a_task_does_not_take_is_refused(task: str, text: str, words: list[str]) -> None:
    declared = TASKS[task].params
    assert declared is not None
    with pytest.raises(ModelError) as caught:
        check_params(task, declared, parse_params([text], declared))
    assert caught.value.code == "bad_param"
    assert all(word in caught.value.message for word in words), caught.value.message


def test_parameters_of_other_distributions_are_json_or_text() -> None:
    assert Task("one-of-theirs", "").params is None
    texts = ["a=1", "b=true", "c=None", "d=null", 'e="x"', "f=a b", "g=NaN", "h=[" + "[" * 100_000]
    found = parse_params(texts, None)
    assert list(found.values())[:-1] == [1, True, "None", None, "x", "a b", "NaN"]
    with pytest.raises(UsageError, match="KEY=VALUE"):
        parse_params(["=3"])


def test_every_parameter_can_be_described_in_json() -> None:
    for task in TASKS.values():
        shown = json.loads(json.dumps(task.as_dict()))["params"]
        assert shown.keys() == TASK_PARAMS[task.name].keys() | LOAD_PARAMS.keys()
