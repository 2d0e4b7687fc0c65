"""The outputs of every task: their type under a job's parameters, and how the pipeline's own form becomes it.

The types follow from task and parameters alone, never from a record or a model (except for the length of vectors), so
that all parts of a result agree, even one that holds only failures. `docs/tasks.md` describes each.
"""

from collections.abc import Callable, Mapping
from typing import Any

from common.embedding_params import NUMBERS
from common.json_codec import to_json
from common.output_types import BYTES, FLOAT32, INTEGER, NUMBER, TEXT, OutputForm, Shape, Vector
from common.records import Json

Params = Mapping[str, Json]

_LABEL = {"label": TEXT, "score": NUMBER}
_SPAN = {"score": NUMBER, "word": TEXT, "start": INTEGER, "end": INTEGER}
_BOX = dict.fromkeys(("xmin", "ymin", "xmax", "ymax"), INTEGER)
_POINT = {"x": NUMBER, "y": NUMBER}
_WORD = {"score": NUMBER, "token": INTEGER, "token_str": TEXT, "sequence": TEXT, "mask": INTEGER}
_CELLS = {"answer": TEXT, "coordinates": [[INTEGER]], "cells": [TEXT], "aggregator": TEXT}
_TOKEN = {"token": TEXT, "logprob": NUMBER}
_HIDDEN_STATES = [[[FLOAT32]]]


def output_form(task: str, params: Params) -> OutputForm | None:
    """Return the form of a built-in task's outputs under these parameters, None for any other task."""
    found = _FORMS.get(task)
    return found if found is None or isinstance(found, OutputForm) else found(params)


# Labels


def _with_text_label(item: Mapping[str, Json]) -> dict[str, Json]:
    return {**item, "label": str(item["label"])}  # a model's configuration may name its classes by numbers


def _labels(output: Json) -> Json:
    return [_with_text_label(item) for item in output]


def _best_label(output: Json) -> Json:
    return _with_text_label(output[0])


def _classification(default: int | None) -> Callable[[Params], OutputForm]:
    """Return the form of a classifier that gives `default` labels: a struct for one label, else a list."""

    def form(params: Params) -> OutputForm:
        one = params.get("top_k", default) == 1
        return OutputForm(_LABEL, _best_label) if one else OutputForm([_LABEL], _labels)

    return form


# Parts of a text


def _entities(params: Params) -> OutputForm:
    if params.get("aggregation_strategy", "none") != "none":
        return OutputForm([{"entity_group": TEXT, **_SPAN}])
    return OutputForm([{"entity": TEXT, "score": NUMBER, "index": INTEGER, **_SPAN}])


def _with_mask_numbers(output: Json) -> Json:
    """Return the words for all masks of a text in one list, each with the number of its mask, from 0."""
    masks = output if output and isinstance(output[0], list) else [output]
    return [{**word, "mask": number} for number, words in enumerate(masks) for word in words]


def _answers(params: Params) -> OutputForm:
    answer = {"answer": TEXT, "score": NUMBER, "start": INTEGER, "end": INTEGER}
    return OutputForm(answer if params.get("top_k", 1) == 1 else [answer])


# Texts


def _each_of(params: Params, shape: Shape, convert: Callable[[Json], Json]) -> OutputForm:
    """Return the form of generated texts: one, or a list if the job asks for several sequences."""
    if params.get("num_return_sequences", 1) == 1:
        return OutputForm(shape, lambda output: convert(output[0]))
    return OutputForm([shape], lambda output: [convert(item) for item in output])


def _texts(params: Params) -> OutputForm:
    return _each_of(params, TEXT, lambda item: next(iter(item.values())))


def _generated(params: Params) -> OutputForm:
    """Return the form of generated text: a chat gives its reply, or all of its messages if the job asks for them."""
    shape: Shape
    name, shape, read = "text", TEXT, _reply
    if params.get("return_full_text"):
        name, shape, read = "messages", [{"role": TEXT, "content": TEXT}], _conversation
    return _detailed_texts(params, name, shape, read)


def _detailed_texts(params: Params, name: str, shape: Shape, read: Callable[[Json], Json]) -> OutputForm:
    """Return the form of generated texts: each alone, or in a struct with the details that the job asks for."""
    more: dict[str, Shape] = {}
    if params.get("tool_calls"):
        more["tool_calls"] = [{"name": TEXT, "arguments": TEXT}]
    if params.get("usage"):
        more |= {"prompt_tokens": INTEGER, "completion_tokens": INTEGER, "finish_reason": TEXT}
    if params.get("logprobs") is not None:
        more["logprobs"] = [{**_TOKEN, "top_logprobs": [_TOKEN]}]
    if not more:
        return _each_of(params, shape, lambda item: read(item["generated_text"]))
    return _each_of(params, {name: shape, **more}, lambda item: {**item, name: read(item["generated_text"])})


def _reply(generated: Json) -> Json:
    """Return a generated text; of a chat, what the last message says."""
    return generated if isinstance(generated, str) else _content(generated[-1])


def _conversation(generated: Json) -> Json:
    """Return the messages of a chat; a text that continues a prompt is one message without a role."""
    if isinstance(generated, str):
        return [{"role": None, "content": generated}]
    return [{"role": message["role"], "content": _content(message)} for message in generated]


def _content(message: Mapping[str, Json]) -> str:
    """Return what a message says: its text, or JSON if it has parts, or calls tools instead."""
    content = message.get("content")
    if isinstance(content, str) and (content or message.keys() <= {"role", "content"}):
        return content
    return to_json(content or {name: value for name, value in message.items() if name != "role"})


def _speech(params: Params) -> OutputForm:
    timestamps, language = params.get("return_timestamps"), params.get("return_language")
    if not timestamps and not language:
        return OutputForm(TEXT, lambda output: output["text"])
    chunk: dict[str, Shape] = {"text": TEXT}
    if timestamps:
        chunk["timestamp"] = [NUMBER]
    if language:
        chunk["language"] = TEXT
    return OutputForm({"text": TEXT, "chunks": [chunk]})


def _replies(params: Params) -> OutputForm:
    return _detailed_texts(params, "text", TEXT, _reply)


def _visual_answers(params: Params) -> OutputForm:
    answer = {"answer": TEXT, "score": NUMBER}
    return OutputForm(answer, lambda output: output[0]) if params.get("top_k") == 1 else OutputForm([answer])


def _document_answers(params: Params) -> OutputForm:
    answer = {"answer": TEXT, "score": NUMBER, "start": INTEGER, "end": INTEGER}
    if params.get("top_k", 1) == 1:
        return OutputForm(answer, lambda output: output[0] if output else {"answer": None})
    return OutputForm([answer])


_DECISION = {
    "question": TEXT,
    "type": TEXT,
    "choice": TEXT,
    "noul": NUMBER,
    "score": NUMBER,
    "confidence": NUMBER,
    "probabilities": [{"option": TEXT, "probability": NUMBER}],
}


def _decisions(output: Json) -> Json:
    """Return the answers in a list, each with its question's name; what its type lacks is null."""
    return [
        {key: answer.get(key) for key in _DECISION} | {"question": name, "probabilities": _options(answer)}
        for name, answer in output.items()
    ]


def _options(answer: Mapping[str, Json]) -> Json:
    found = answer.get("probabilities")
    return found and [{"option": option, "probability": share} for option, share in found.items()]


# Vectors

#: A vector for each token.
MULTI_VECTOR = OutputForm([Vector()])


def embedding_form(params: Params) -> OutputForm:
    """Return the form of an embedding: a vector in the job's precision, or a list of pieces that have one each."""
    vector = Vector(NUMBERS.get(str(params.get("precision")), FLOAT32))
    return OutputForm([{"start": INTEGER, "end": INTEGER, "vector": vector}] if "split_tokens" in params else vector)


def _sparse_vector(params: Params) -> OutputForm:
    tokens: dict[str, Shape] = {"tokens": [TEXT]} if params.get("tokens") else {}
    return OutputForm({"indices": ["int32"], **tokens, "values": [FLOAT32]})


# Pairs of texts


def _ranking(params: Params) -> OutputForm:
    """Return the form of a query's documents: their scores in order, or of each all that the model gives."""
    document: dict[str, Shape] = {"document": TEXT} if params.get("return_documents") else {}
    if params.get("return_all_scores"):
        return OutputForm([{"index": INTEGER, "scores": [NUMBER], **document}])
    shape = {"index": INTEGER, "score": NUMBER, **document}
    return OutputForm(shape, lambda output: output[0]) if params.get("top_k") == 1 else OutputForm([shape])


# Images


def _masks(params: Params) -> OutputForm:
    box: dict[str, Shape] = {"box": _BOX} if params.get("output_bboxes_mask") else {}
    return OutputForm([{"mask": BYTES, "score": NUMBER, **box}])


def _depth(params: Params) -> OutputForm:
    numbers: dict[str, Shape] = {"predicted_depth": [[FLOAT32]]} if params.get("predicted_depth") else {}
    return OutputForm({"depth": BYTES, **numbers})


def _image_states(params: Params) -> OutputForm:
    return OutputForm(Vector(), _flattened) if params.get("pool") else OutputForm(_HIDDEN_STATES)


def _flattened(output: Any) -> Json:
    """Return the numbers of nested lists: poolers give shapes such as (1, width) and (1, width, 1, 1)."""
    return [number for part in output for number in _flattened(part)] if isinstance(output, list) else [output]


#: By task; functions where parameters change it.
_FORMS: Mapping[str, OutputForm | Callable[[Params], OutputForm]] = {
    "fill-mask": OutputForm([_WORD], _with_mask_numbers),
    "text-classification": _classification(1),
    "token-classification": _entities,
    "zero-shot-classification": OutputForm({"sequence": TEXT, "labels": [TEXT], "scores": [NUMBER]}),
    "text-generation": _generated,
    "feature-extraction": OutputForm(_HIDDEN_STATES),
    "embedding": embedding_form,
    "rerank": _ranking,
    "sentence-similarity": OutputForm([NUMBER]),
    "sparse-embedding": _sparse_vector,
    "multi-vector-embedding": MULTI_VECTOR,
    "table-question-answering": OutputForm(_CELLS),
    "question-answering": _answers,
    "translation": _texts,
    "summarization": _texts,
    "text2text-generation": _texts,
    "image-classification": _classification(5),
    "zero-shot-image-classification": OutputForm([_LABEL], _labels),
    "object-detection": OutputForm([{**_LABEL, "box": _BOX}], _labels),
    "image-segmentation": OutputForm([{**_LABEL, "mask": BYTES}], _labels),
    "zero-shot-object-detection": OutputForm([{**_LABEL, "box": _BOX}], _labels),
    "keypoint-matching": OutputForm([{"keypoint_image_0": _POINT, "keypoint_image_1": _POINT, "score": NUMBER}]),
    "mask-generation": _masks,
    "image-text-to-text": _replies,
    "visual-question-answering": _visual_answers,
    "document-question-answering": _document_answers,
    "any-to-any": _replies,
    "decision": OutputForm([_DECISION], _decisions),
    "text-to-audio": OutputForm({"audio": BYTES, "sampling_rate": INTEGER}),
    "video-classification": _classification(5),
    "depth-estimation": _depth,
    "image-feature-extraction": _image_states,
    "audio-classification": _classification(None),
    "zero-shot-audio-classification": OutputForm([_LABEL], _labels),
    "automatic-speech-recognition": _speech,
}
