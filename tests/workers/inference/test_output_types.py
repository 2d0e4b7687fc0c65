"""Outputs of real models in the declared type of their task: nothing is lost, and what was written is read back."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from common.jobs import JobSpec
from common.json_codec import to_json
from common.output_types import OutputForm
from common.payloads.chunk_rows import chunk_rows
from common.payloads.codec import decode_outcomes, iter_outcomes
from common.payloads.part_files import FORMATS, decode_part, encode_part
from common.payloads.result_tables import ResultTable
from common.records import FileInput, Json, Outcome, Record, pack_files
from common.results import ResultLayout
from common.task_outputs import output_form
from common.tasks import TASKS, declared_output
from tests.support import tiny_media, tiny_models, tiny_multimodal, tiny_sentence_transformers, tiny_seq2seq
from tests.support.pipeline_reference import runner_of
from tests.support.tiny_models import TEXTS, RecordingMonitor
from tests.support.torchvision_stand_in import provide_torchvision
from workers.device.server.encode_chunk import OutputEncoding, encode_chunk

LABELS: dict[str, Json] = {"candidate_labels": ["old news", "서울"]}
GREEDY: dict[str, Json] = {"do_sample": False, "max_new_tokens": 6}
BEAMS = GREEDY | {"num_beams": 2, "num_return_sequences": 2}
CHAT = {"messages": [{"role": "system", "content": "be short"}, {"role": "user", "content": "the old cat?"}]}
MASKED = ["the [MASK]", "the [MASK] of [MASK]", "나는 [MASK]에 간다 😀"]
QUESTION = {"question": "where is the cat?", "context": "the old cat sleeps in paris and the dog runs"}
DECISION = {
    "state": "the cat",
    "questions": {
        "a": {"type": "noul", "instructions": "old?"},
        "b": {"type": "choice", "instructions": "who?", "criteria": {"cat": "a cat", "dog": None}},
        "c": {"type": "score", "instructions": "how old?", "criteria": ["young", "old"]},
    },
}
DOCUMENT = {"question": "the cat?", "word_boxes": [["the", [10, 10, 60, 30]], ["cat", [70, 10, 120, 30]]]}
TABLE = {"table": {"city": ["paris", "seoul"], "people": ["2", "9"]}, "query": "how many people live in paris"}
EVERY_MASK: dict[str, Json] = {"points_per_crop": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
RANKED = [{"query": "where is the cat?", "documents": [*TEXTS[:4]]}, {"query": "the dog", "document": TEXTS[0]}]
LONG = [tiny_media.samples(seconds, seed) for seed, seconds in enumerate((0.5, 1.0))]

TEXT_CASES: list[tuple[str, Callable[[Path], Path], dict[str, Json], Sequence[Json]]] = [
    ("fill-mask", tiny_models.masked_bert, {}, MASKED),
    ("fill-mask", tiny_models.masked_bert, {"top_k": 1, "targets": ["cat", "dog"]}, MASKED),
    ("text-classification", tiny_models.classifier, {}, [*TEXTS, {"text": "a", "text_pair": "b"}]),
    ("text-classification", tiny_models.classifier, {"top_k": 1}, TEXTS),
    ("text-classification", tiny_models.classifier, {"top_k": 2}, TEXTS),
    ("text-classification", tiny_models.classifier, {"top_k": None}, TEXTS),
    ("token-classification", tiny_models.tagger, {}, TEXTS),
    ("token-classification", tiny_models.tagger, {"aggregation_strategy": "simple"}, TEXTS),
    ("token-classification", tiny_models.tagger, {"aggregation_strategy": "max", "ignore_labels": []}, TEXTS),
    ("zero-shot-classification", tiny_models.natural_language_inference, LABELS, TEXTS),
    ("zero-shot-classification", tiny_models.natural_language_inference, LABELS | {"multi_label": True}, TEXTS[:3]),
    ("text-generation", tiny_models.causal_gpt2, GREEDY, ["the old", CHAT]),
    ("text-generation", tiny_models.causal_gpt2, GREEDY | {"return_full_text": False}, ["the old", CHAT]),
    ("text-generation", tiny_models.causal_gpt2, GREEDY | {"return_full_text": True}, ["the old", CHAT]),
    ("text-generation", tiny_models.causal_gpt2, GREEDY | {"usage": True}, ["the old", CHAT]),
    ("text-generation", tiny_models.causal_gpt2, GREEDY | {"logprobs": 2}, ["the old", CHAT]),
    ("text-generation", tiny_models.causal_gpt2, BEAMS, ["the old", CHAT]),
    ("text-generation", tiny_models.causal_gpt2, BEAMS | {"usage": True, "return_full_text": True}, ["the", CHAT]),
    ("feature-extraction", tiny_models.masked_bert, {}, TEXTS),
    ("embedding", tiny_models.masked_bert, {}, TEXTS),
    ("embedding", tiny_models.masked_bert, {"truncate_dim": 5}, TEXTS),
    ("rerank", tiny_sentence_transformers.reranker, {}, RANKED),
    ("rerank", tiny_sentence_transformers.reranker, {"top_k": 1, "return_documents": True}, RANKED),
    ("rerank", tiny_sentence_transformers.reranker, {"return_all_scores": True}, RANKED),
    ("sentence-similarity", tiny_models.masked_bert, {}, [{"source_sentence": "the old cat", "sentences": [*TEXTS]}]),
    ("sparse-embedding", tiny_sentence_transformers.sparse, {}, TEXTS),
    ("sparse-embedding", tiny_sentence_transformers.sparse, {"tokens": True, "max_active_dims": 3}, TEXTS),
    ("multi-vector-embedding", tiny_sentence_transformers.multi_vector, {"task": "query"}, TEXTS),
    ("table-question-answering", tiny_models.table_answers, {}, [TABLE, TABLE | {"query": "old?"}]),
    ("question-answering", tiny_models.answering, {}, [QUESTION]),
    ("question-answering", tiny_models.answering, {"top_k": 3}, [QUESTION]),
    ("document-question-answering", tiny_multimodal.layoutlm, {}, [DOCUMENT]),
    ("document-question-answering", tiny_multimodal.layoutlm, {"top_k": 3}, [DOCUMENT]),
    ("any-to-any", tiny_multimodal.qwen2_audio, GREEDY, ["the old", CHAT]),
    ("decision", tiny_multimodal.decisive, {}, [DECISION]),
    ("text-to-audio", tiny_multimodal.vits, {"format": "flac"}, ["the old"]),
    ("translation", tiny_seq2seq.make_t5, GREEDY, tiny_seq2seq.TEXTS),
    ("translation_en_to_fr", tiny_seq2seq.make_t5, BEAMS, tiny_seq2seq.TEXTS),
    ("summarization", tiny_seq2seq.make_bart, GREEDY, tiny_seq2seq.TEXTS),
    ("text2text-generation", tiny_seq2seq.make_t5, GREEDY, tiny_seq2seq.TEXTS),
]
MEDIA_CASES: list[tuple[str, Callable[[Path], Path], dict[str, Json]]] = [
    ("image-classification", tiny_media.vit, {}),
    ("image-classification", tiny_media.vit, {"top_k": 1}),
    ("zero-shot-image-classification", tiny_media.clip, {"candidate_labels": ["red cat", "bird"]}),
    ("object-detection", tiny_media.detr, {"threshold": 0.1}),
    ("zero-shot-object-detection", tiny_multimodal.owlvit, LABELS | {"threshold": 0.0}),
    ("mask-generation", tiny_multimodal.sam, EVERY_MASK),
    ("mask-generation", tiny_multimodal.sam, EVERY_MASK | {"output_bboxes_mask": True}),
    ("keypoint-matching", tiny_multimodal.superglue, {}),
    ("image-text-to-text", tiny_multimodal.llava, GREEDY | {"text": "the old"}),
    ("image-text-to-text", tiny_multimodal.llava, BEAMS | {"text": "the old"}),
    ("visual-question-answering", tiny_multimodal.vilt, {"question": "the cat?"}),
    ("visual-question-answering", tiny_multimodal.vilt, {"question": "the cat?", "top_k": 1}),
    ("visual-question-answering", tiny_multimodal.blip, {"question": "the cat?"}),
    ("image-segmentation", tiny_media.segformer, {}),
    ("depth-estimation", tiny_media.glpn, {}),
    ("depth-estimation", tiny_media.glpn, {"predicted_depth": True}),
    ("image-feature-extraction", tiny_media.vit_states, {}),
    ("image-feature-extraction", tiny_media.vit_states, {"pool": True}),
    ("video-classification", tiny_multimodal.videomae, {}),
    ("audio-classification", tiny_media.heard, {}),
    ("audio-classification", tiny_media.heard, {"top_k": 1}),
    ("zero-shot-audio-classification", tiny_media.clap, {"candidate_labels": ["the old cat", "a river"]}),
    ("automatic-speech-recognition", tiny_media.spoken, {}),
    ("automatic-speech-recognition", tiny_media.spoken, {"return_timestamps": "word"}),
    ("automatic-speech-recognition", tiny_media.whisper, {"return_timestamps": True}),
    ("automatic-speech-recognition", tiny_media.whisper, {"return_timestamps": True, "return_language": True}),
    ("automatic-speech-recognition", tiny_media.whisper, {"return_language": True}),
]


def test_every_task_has_a_case() -> None:
    assert {case[0] for case in (*TEXT_CASES, *MEDIA_CASES)} - {"translation_en_to_fr"} == set(TASKS)


@pytest.mark.parametrize(("task", "make", "params", "inputs"), TEXT_CASES)
def test_outputs_of_texts_have_the_declared_type(tmp_path, task, make, params, inputs) -> None:
    check(task, make(tmp_path / "model"), params, inputs)


@pytest.mark.parametrize(("task", "make", "params"), MEDIA_CASES)
def test_outputs_of_files_have_the_declared_type(tmp_path, monkeypatch, task, make, params) -> None:
    if task == "mask-generation":
        provide_torchvision(monkeypatch)
    if "image" in TASKS[task].media:
        paths = tiny_media.photos(tmp_path)
        blobs = [path.read_bytes() for path in (paths[2], paths[5])]
    elif "video" in TASKS[task].media:
        blobs = [tiny_multimodal.clip_of(8)]
    else:
        blobs = [tiny_media.sound_bytes(sound) for sound in LONG]
    inputs = [FileInput("file", blob) for blob in blobs]
    if TASKS[task].second_file:
        inputs = [FileInput({"image": "file", "second_image": "file"}, pack_files(blobs))]
    outputs = check(task, make(tmp_path / "model"), params, inputs)
    for output in outputs:
        for image in images_in(output):
            assert Image.open(io.BytesIO(image)).format == "PNG"


def images_in(output: Json) -> list[bytes]:
    items = output if isinstance(output, list) else [output]
    return [value for item in items if isinstance(item, dict) for value in item.values() if isinstance(value, bytes)]


def check(task: str, model: Path, params: dict[str, Json], inputs: Sequence[Json]) -> list[Json]:
    """Run a task, encode its outcomes, and compare them with what comes back; return the outputs."""
    spec = JobSpec("0" * 12, task, params=params)
    form = declared_output(spec)
    assert form is not None
    runner = runner_of(task, model)
    outcomes = runner.run(inputs, params, RecordingMonitor())
    assert [outcome.failure for outcome in outcomes] == [None] * len(inputs)
    expected = [stated(form.convert(outcome.output), form.shape) for outcome in outcomes]
    records = {at: Record(f"r{at}", str(at)) for at in range(len(inputs))}
    payload, counts = encode_chunk(records, outcomes, OutputEncoding.of(runner, spec, params))
    assert counts.succeeded == len(inputs)
    table = decode_outcomes(payload)
    kind = table.schema.field("output").type
    assert kind == form.arrow_type(expected[0])
    found = [outcome.output for _, _, outcome in iter_outcomes(table)]
    assert found == expected == table["output"].to_pylist()
    assert [form.from_json(json.loads(to_json(output))) for output in found] == found
    check_parts(list(records.values()), payload, kind, form)
    return found


def check_parts(records: list[Record], payload: bytes, kind: pa.DataType, form: OutputForm) -> None:
    layout = ResultLayout()
    for format in FORMATS:
        part = encode_part(chunk_rows(records, [payload], arrays=True), ResultTable(layout, {}, kind), format)
        again = decode_outcomes(decode_part(part, format, layout, form))
        assert again.schema.field("output").type == kind
        assert list(iter_outcomes(again)) == list(iter_outcomes(decode_outcomes(payload)))


def stated(value: Any, shape: Any) -> Json:
    """Return a converted output as its shape states it; fail if it has more than that."""
    if isinstance(shape, dict) and value is not None:
        assert value.keys() - {"generated_text"} <= shape.keys()
        return {name: stated(value.get(name), part) for name, part in shape.items()}
    if isinstance(shape, list) and value is not None:
        return [stated(item, shape[0]) for item in value]
    if hasattr(value, "tolist"):
        value = value.tolist()
    if shape == "float" or not isinstance(shape, str):  # numbers of 32 bits
        return pa.array([value], pa.float32() if shape == "float" else pa.list_(pa.float32())).to_pylist()[0]
    return value


def converted(task: str, output: Json, **params: Json) -> Json:
    form = output_form(task, params)
    assert form is not None
    return form.convert(output)


def test_the_words_for_several_masks_have_the_numbers_of_their_masks() -> None:
    word = {"score": 0.5, "token": 1, "token_str": "a", "sequence": "a b"}
    assert converted("fill-mask", [word]) == [word | {"mask": 0}]
    assert converted("fill-mask", [[word], [word]]) == [word | {"mask": 0}, word | {"mask": 1}]


TOOLS = [{"type": "function", "function": {"name": "weather"}}]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"role": "assistant", "content": "hello"}, "hello"),
        ({"role": "assistant", "content": ""}, ""),
        ({"role": "assistant", "content": "hello", "thinking": "hm"}, "hello"),
        ({"role": "assistant", "content": "", "tool_calls": TOOLS}, to_json({"content": "", "tool_calls": TOOLS})),
        ({"role": "assistant", "tool_calls": TOOLS}, to_json({"tool_calls": TOOLS})),
        ({"role": "user", "content": [{"type": "text", "text": "a"}]}, '[{"type": "text", "text": "a"}]'),
    ],
)
def test_a_reply_is_a_text_whatever_its_message_holds(message: dict[str, Json], text: str) -> None:
    chat = [{"generated_text": [{"role": "user", "content": "hi"}, message]}]
    assert converted("text-generation", chat) == text
    messages = converted("text-generation", chat, return_full_text=True)
    assert messages == [{"role": "user", "content": "hi"}, {"role": message["role"], "content": text}]


def test_a_label_that_is_a_number_becomes_a_text() -> None:
    assert converted("text-classification", [{"label": 1, "score": 0.5}]) == {"label": "1", "score": 0.5}


def test_an_output_of_another_form_fails_its_record_alone() -> None:
    spec = JobSpec("0" * 12, "text-classification")
    form = declared_output(spec)
    assert form is not None
    good = Outcome([{"label": "a", "score": 0.5}])
    outcomes = [good, Outcome("text"), Outcome([]), Outcome([{"label": "a", "score": "high"}]), good]
    records = {at: Record(at, "x") for at in range(len(outcomes))}
    payload, counts = encode_chunk(records, outcomes, OutputEncoding(form.arrow_type(), form.convert))
    assert (counts.succeeded, counts.failed) == (2, 3)
    found = [outcome for _, _, outcome in iter_outcomes(decode_outcomes(payload))]
    assert [outcome.output for outcome in found] == [good.output[0], None, None, None, good.output[0]]
    assert {outcome.failure.code for outcome in found if outcome.failure} == {"runner_error"}
