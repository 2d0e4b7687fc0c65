"""Prompts and chats with images through the runner give what `transformers.pipeline` gives for each alone."""

import base64
import io
import json
from pathlib import Path

import pytest
import transformers
from PIL import Image

from common.errors import ModelError
from common.output_constraints import ConstrainedInput, Constraint
from common.records import FileInput, Json, Outcome
from tests.support import tiny_media, tiny_multimodal
from tests.support.pipeline_reference import runner_of
from tests.support.tiny_models import ForwardCount, RecordingMonitor

TASK = "image-text-to-text"
GREEDY: dict[str, Json] = {"do_sample": False, "max_new_tokens": 8}
BLOBS = [tiny_media.image_bytes(40, 30, seed) for seed in range(4)]
IN_BASE64 = [base64.b64encode(blob).decode() for blob in BLOBS]


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_multimodal.llava(tmp_path_factory.mktemp("llava"))


def image(number: int) -> Image.Image:
    return Image.open(io.BytesIO(BLOBS[number]))


def run(model: Path, inputs: list[Json], **params: Json) -> list[Outcome]:
    return runner_of(TASK, model).run(inputs, params, RecordingMonitor())


def asked(text: str, number: int) -> list[Json]:
    content = [{"type": "image", "image": image(number)}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    "params",
    [
        GREEDY,
        {**GREEDY, "num_beams": 2, "num_return_sequences": 2},
        {**GREEDY, "stop_sequence": ["e"]},
        {**GREEDY, "skip_special_tokens": False, "max_new_tokens": 20},
    ],
)
def test_a_question_and_a_chat_get_the_texts_that_the_pipeline_gives(llava: Path, params: dict[str, Json]):
    given = {name: value for name, value in params.items() if name not in ("stop_sequence", "skip_special_tokens")}
    rest = {name: value for name, value in params.items() if name not in given}
    pipe = transformers.pipeline(TASK, model=str(llava), device="cpu")
    data_url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{IN_BASE64[1]}"}}
    two = [
        {"role": "system", "content": [{"type": "text", "text": "be short"}]},
        {"role": "user", "content": [{"type": "image", "base64": IN_BASE64[0]}, {"type": "text", "text": "a dog?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "no"}]},
        {"role": "user", "content": [data_url, {"type": "text", "text": "and the river?"}]},
    ]
    plain = [{"role": "user", "content": "the old house"}]
    records: list[tuple[Json, Json]] = [
        (FileInput({"image": "x.png", "text": "a dog and a cat"}, BLOBS[0]), asked("a dog and a cat", 0)),
        (FileInput({"image": "x.png", "text": "a dog and a cat"}, BLOBS[1]), asked("a dog and a cat", 1)),
        (FileInput("x.png", BLOBS[2]), asked("Berlin is old", 2)),
        (FileInput({"image": "x.png", "messages": plain}, BLOBS[3]), asked("the old house", 3)),
        ({"messages": two}, two),
        ({"messages": plain}, plain),
    ]  # fmt: skip
    outcomes = run(llava, [record for record, _ in records], text="Berlin is old", **params)
    assert [outcome.failure for outcome in outcomes] == [None] * len(records)
    for outcome, (_, messages) in zip(outcomes, records, strict=True):
        expected = pipe(text=messages, return_full_text=False, generate_kwargs=given, **rest)
        assert [item["generated_text"] for item in outcome.output] == [item["generated_text"] for item in expected]


def test_a_model_without_a_chat_template_continues_the_text_itself(tmp_path: Path):
    model = tiny_multimodal.llava(tmp_path / "model", template=None)
    pipe = transformers.pipeline(TASK, model=str(model), device="cpu")
    record = FileInput({"image": "x.png", "text": "<image> the river"}, BLOBS[0])
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    first, second = run(model, [record, chat], **GREEDY)
    expected = pipe(image(0), text="<image> the river", return_full_text=False, generate_kwargs=GREEDY)
    assert first.output[0]["generated_text"] == expected[0]["generated_text"]
    assert second.failure and second.failure.code == "no_chat_template"
    with pytest.raises(ModelError) as caught:
        run(model, [record], chat=True)
    assert caught.value.code == "no_chat_template"


def test_records_of_equal_shapes_share_a_batch_and_seeds_belong_to_records(llava: Path):
    runner = runner_of(TASK, llava)
    records = [FileInput({"image": "x.png", "text": "a dog"}, blob) for blob in BLOBS]
    with ForwardCount() as count:
        runner.run(records, {**GREEDY, "max_new_tokens": 1}, RecordingMonitor())
    assert (count.passes, count.rows) == (1, len(records))
    sampled = {"do_sample": True, "temperature": 5.0, "max_new_tokens": 8, "seed": 3}
    together = runner.run(records, sampled, RecordingMonitor())
    [alone] = runner.run(records[2:3], sampled, RecordingMonitor())
    assert alone.output[0]["generated_text"] == together[2].output[0]["generated_text"]
    assert len({outcome.output[0]["generated_text"] for outcome in together}) > 1


def parts(*content: Json) -> Json:
    return {"messages": [{"role": "user", "content": list(content)}]}


@pytest.mark.parametrize(
    ("record", "code", "words"),
    [
        (parts({"type": "image", "url": "https://example.com/cat.png"}), "missing_file", "not open these"),
        (parts({"type": "image", "path": "/etc/hostname"}), "missing_file", "not open these"),
        (parts({"type": "image_url", "image_url": {"url": "http://example.com/a"}}), "missing_file", "not open these"),
        (parts({"type": "image", "image": 7}), "wrong_type", "base64"),
        (parts({"type": "image"}), "missing_field", "the record has none"),
        (parts({"type": "image", "base64": IN_BASE64[0][:40]}), "bad_image", "cannot be decoded"),
        (parts({"type": "video", "path": "a.mp4"}), "wrong_type", "'video'"),
        (parts("text"), "wrong_type", "must be an object"),
        (FileInput({"image": "x.png"}, BLOBS[0]), "missing_field", "-p text=TEXT"),
        (FileInput({"image": "x.png", "text": " "}, BLOBS[0]), "empty_text", "only whitespace"),
        (FileInput({"image": "x.png", "text": "a"}, b"no image"), "bad_image", "does not begin"),
        ({"image": "x.png", "text": "a"}, "missing_file", "HUGQUEUE_SHARED"),
        ({"text": "a"}, "missing_field", "image or messages"),
        (FileInput({"image": "x.png", "text": "a dog " * 400}, BLOBS[0]), "too_long", "the model takes 512"),
    ],
)  # fmt: skip
def test_a_bad_record_fails_alone(llava: Path, record: Json, code: str, words: str):
    good = FileInput({"image": "x.png", "text": "a dog"}, BLOBS[0])
    first, second = run(llava, [record, good], **GREEDY)
    assert first.failure and (first.failure.code, second.failure) == (code, None)
    assert words in first.failure.message


def test_parameters_that_contradict_each_other_or_the_model_fail_the_job(llava: Path, tmp_path: Path):
    for params in ({"system": "be short", "chat": False}, {"top_p": 2.0}, {"candidate_labels": "a"}):
        with pytest.raises(ModelError) as caught:
            run(llava, [parts({"type": "text", "text": "a"})], **params)
        assert caught.value.code == "bad_param"
    with pytest.raises(ModelError) as caught:
        runner_of(TASK, tiny_media.vit(tmp_path / "vit"))
    assert caught.value.code == "missing_weights"
    (llava / "processor_config.json").rename(tmp_path / "away.json")
    try:
        with pytest.raises(ModelError) as caught:
            runner_of(TASK, llava)
    finally:
        (tmp_path / "away.json").rename(llava / "processor_config.json")
    assert caught.value.code == "no_processor"


def test_a_chat_with_audio_gets_the_text_that_the_pipeline_gives(tmp_path: Path):
    model = tiny_multimodal.qwen2_audio(tmp_path / "model")
    pipe = transformers.pipeline("any-to-any", model=str(model), device="cpu")
    sounds = [tiny_media.samples(seconds, seed) for seed, seconds in enumerate((0.5, 0.3))]
    encoded = [base64.b64encode(tiny_media.sound_bytes(sound)).decode() for sound in sounds]
    forms = [{"type": "audio", "base64": encoded[0]}, {"type": "input_audio", "input_audio": {"data": encoded[1]}}]
    text = {"type": "text", "text": "a dog?"}
    records: list[Json] = [parts(form, text) for form in forms]
    records += ["Berlin is old", parts({"type": "audio", "url": "https://example.com/a.wav"}), parts({"type": "image"})]
    *outcomes, address, picture = runner_of("any-to-any", model).run(records, GREEDY, RecordingMonitor())
    chats = [parts({"type": "audio", "audio": sound}, text)["messages"] for sound in sounds]
    chats.append(parts({"type": "text", "text": "Berlin is old"})["messages"])
    for outcome, chat in zip(outcomes, chats, strict=True):
        expected = pipe(text=chat, return_full_text=False, generate_kwargs=dict(GREEDY))
        assert outcome.failure is None
        assert outcome.output == [{"generated_text": expected[0]["generated_text"]}]
    assert address.failure and address.failure.code == "missing_file"
    assert picture.failure and picture.failure.code == "wrong_type"


def test_texts_about_images_meet_the_constraints_of_their_job_and_of_their_records(llava: Path):
    runner = runner_of(TASK, llava)
    schema = {"type": "object", "properties": {"dog": {"type": "boolean"}}, "required": ["dog"]}
    schema["additionalProperties"] = False
    records: list[Json] = [FileInput({"image": "x.png", "text": "a dog?"}, blob) for blob in BLOBS]
    params: dict[str, Json] = {"max_new_tokens": 60, "do_sample": True, "seed": 3}
    outcomes = runner.run(records, {**params, "json_schema": schema, "usage": True}, RecordingMonitor())
    for outcome in outcomes:
        [text] = outcome.output
        assert list(json.loads(text["generated_text"])) == ["dog"]
        assert text["finish_reason"] == "stop"
    own = [
        ConstrainedInput(records[0], Constraint("json_schema", schema)),
        ConstrainedInput(records[1], Constraint("choices", ["yes", "no"])),
        ConstrainedInput(records[2], Constraint("json_schema", {"enum": []})),
        records[3],
    ]
    monitor = RecordingMonitor()
    first, second, impossible, free = runner.run(own, params, monitor)
    assert {0, 1, 3} in map(set, monitor.batches)  # they share a batch
    assert list(json.loads(first.output[0]["generated_text"])) == ["dog"]
    assert second.output[0]["generated_text"] in ("yes", "no")
    assert impossible.failure and impossible.failure.code == "bad_param"
    [alone] = runner.run([records[3]], params, RecordingMonitor())
    assert free.output == alone.output


def test_a_text_about_an_image_that_is_cut_off_is_marked(llava: Path):
    records = [FileInput({"image": "x.png", "text": "a dog?"}, BLOBS[0])]
    [cut] = run(llava, records, max_new_tokens=2, regex="(long ){9}")
    assert cut.failure and cut.failure.code == "incomplete_output"
    with pytest.raises(ModelError, match="stop_strings"):
        run(llava, records, choices=["yes", "no"], stop_sequence="e")
