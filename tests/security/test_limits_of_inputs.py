"""Limits: what is too large is refused early, with the way out, and leaves nothing behind."""

import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from transformers import AutoConfig, GenerationConfig

from common.errors import ModelError, PayloadError
from common.payloads.codec import MAX_ROWS, decode_outcomes, decode_records, encode_outcomes, encode_records
from common.records import FileInput, Outcome, Record
from tests.support.forged_redis_data import GOOD, OUTCOMES, RECORDS, bomb, forged
from tests.support.pipeline_reference import runner_of
from tests.support.processes import RedisServer, Shell, Workers
from tests.support.tiny_media import samples, sound_bytes, whisper
from tests.support.tiny_models import RecordingMonitor, causal_gpt2
from tests.support.tiny_seq2seq import make_bart
from workers.inference.generation.limits import check_token_limit
from workers.inference.loading.loader import ModelSource, load_model
from workers.models.load_options import LoadOptions


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"HUGQUEUE_MAX_JOB_RECORDS": "9"}, "more than 9 records (HUGQUEUE_MAX_JOB_RECORDS)"),
        ({"HUGQUEUE_MAX_JOB_BYTES": "30"}, "more than 30 bytes of text (HUGQUEUE_MAX_JOB_BYTES)"),
    ],
)
def test_a_job_that_is_too_large_is_refused_and_nothing_of_it_stays(
    environ: dict[str, str], server: RedisServer, tmp_path: Path, setting: dict[str, str], message: str
):
    shell = Shell(environ | setting, tmp_path)
    (tmp_path / "a.txt").write_text("text\n" * 10)
    for option in ([], ["--dry-run"]):
        said = shell.run("submit", "--task", "test-echo", "a.txt", "--chunk-size", "4", *option, status=2).stderr
        assert message in said
        assert "Split it" in said
    assert server.client.keys("*") == []


def test_a_job_of_just_the_limit_is_accepted(environ: dict[str, str], tmp_path: Path):
    (tmp_path / "a.txt").write_text("text\n" * 10)
    limits = {"HUGQUEUE_MAX_JOB_RECORDS": "10", "HUGQUEUE_MAX_JOB_BYTES": "40"}
    assert Shell(environ | limits, tmp_path).submit("--task", "test-echo", "a.txt")


def test_a_small_payload_that_expands_hugely_is_refused_unopened():
    payload = bomb()
    assert len(payload) < 100_000
    before = pa.total_allocated_bytes()
    with pytest.raises(PayloadError, match="the data expand to 600,0"):
        decode_records(payload)
    assert pa.total_allocated_bytes() == before


def test_a_payload_of_too_many_rows_is_refused():
    rows = MAX_ROWS + 1
    nothing = {name: [""] * rows for name in RECORDS}
    with pytest.raises(PayloadError, match="1,000,001 rows"):
        decode_records(forged(nothing))


@pytest.mark.parametrize(
    "kind",
    [pa.null(), pa.dictionary(pa.int8(), pa.string()), pa.list_(pa.null()), pa.list_(pa.int8(), 0), pa.struct([])],
    ids=str,
)
def test_outputs_of_a_type_that_expands_beyond_its_bytes_are_refused(kind: pa.DataType):
    kinds = OUTCOMES | {"output": kind}
    columns: dict[str, list[object]] = {name: [None] for name in kinds}
    with pytest.raises(PayloadError, match="column output must be of a plain type"):
        decode_outcomes(forged(columns, kinds, "outcomes"))


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float32(), 2),
        pa.list_(pa.list_(pa.float64())),
        pa.struct([("a", pa.string())]),
        pa.int64(),
        pa.binary(),
    ],
)
def test_outputs_of_plain_types_are_taken(kind: pa.DataType):
    assert decode_outcomes(encode_outcomes([0], [7], [Outcome(None)], kind)).num_rows == 1


def test_a_payload_too_large_to_be_read_is_not_written_either():
    with pytest.raises(PayloadError, match="--chunk-size"):
        encode_records([Record(0, "x" * 600_000_000)])


GENERATION = [
    ({"max_new_tokens": 101}, False),
    ({"max_new_tokens": 100}, True),
    ({"max_length": 101}, False),
    ({"min_new_tokens": 101}, False),
    ({"max_new_tokens": 50, "num_return_sequences": 2}, True),
    ({"max_new_tokens": 50, "num_return_sequences": 3}, False),
    ({"max_new_tokens": 50, "num_beams": 3}, False),
    ({"num_beams": 1000}, False),
    ({"max_new_tokens": "many"}, True),  # the runner knows better what is wrong with that
    ({"top_k": 5000}, True),
    ({}, True),
]


@pytest.mark.parametrize(("params", "allowed"), GENERATION)
def test_a_job_that_asks_for_too_many_tokens_is_refused(params: dict[str, object], allowed: bool):
    if allowed:
        check_token_limit("text-generation", params, 100)
        return
    with pytest.raises(ModelError) as raised:
        check_token_limit("text-generation", params, 100)
    assert raised.value.code == "too_many_tokens"
    assert "HUGQUEUE_MAX_NEW_TOKENS" in raised.value.message


def test_max_length_is_not_a_generation_limit_where_it_cuts_the_input():
    check_token_limit("text-classification", {"max_length": 512}, 100)
    with pytest.raises(ModelError):
        check_token_limit("translation_en_to_de", {"max_length": 512}, 100)


def test_what_the_model_itself_would_generate_is_bounded_as_well(tmp_path: Path):
    model = causal_gpt2(tmp_path / "model", positions=64)
    GenerationConfig(max_new_tokens=5000, max_length=9000).save_pretrained(model)
    config = AutoConfig.from_pretrained(model)
    config.task_specific_params = {"summarization": {"max_length": 5000, "num_beams": 2}}
    config.save_pretrained(model)
    from transformers import AutoModelForCausalLM

    loaded = load_model(AutoModelForCausalLM, ModelSource(model, LoadOptions(max_new_tokens=7)), "cpu")
    assert loaded.generation_config.max_new_tokens == 7
    assert loaded.config.task_specific_params == {"summarization": {"max_length": 7 // 2, "num_beams": 2}}
    ids = torch.tensor([[5, 6]])
    assert loaded.generate(ids, do_sample=False, eos_token_id=-1).shape[1] == 2 + 7


#: Tasks whose models generate, a tiny model for each, and a record.
GENERATING: dict[str, tuple[Callable[[Path], Path], Any]] = {
    "text-generation": (lambda path: causal_gpt2(path, positions=64), "the cat"),
    "summarization": (make_bart, "the cat sleeps"),
    "automatic-speech-recognition": (whisper, FileInput("a.wav", sound_bytes(samples(0.5, 1)))),
}


class CountTokens:
    """Counts the tokens that a model generates, those of all beams and sequences."""

    def __init__(self, model: Any) -> None:
        self.tokens = 0
        decoder = model.get_decoder() if model.config.is_encoder_decoder else model
        decoder.register_forward_hook(self._count)

    def _count(self, module: Any, args: Any, output: Any) -> None:
        self.tokens += len(output[0])  # a row for each beam and sequence, at each step


@pytest.mark.parametrize("task", GENERATING)
@pytest.mark.parametrize(
    ("own", "params", "allowed"),
    [
        ({"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 12}, {}, True),
        ({"num_beams": 50, "num_return_sequences": 50}, {}, True),
        ({"num_beams": 5}, {"max_new_tokens": 24}, False),
        ({"num_beams": 5}, {"max_new_tokens": 4}, True),
        ({"max_new_tokens": 24}, {"num_beams": 5}, False),
    ],
)
def test_beams_and_sequences_of_the_models_own_count(
    task: str, own: dict[str, int], params: dict[str, int], allowed: bool, tmp_path: Path
):
    make, record = GENERATING[task]
    model = make(tmp_path / "model")
    saved = GenerationConfig.from_pretrained(model)
    saved.update(**own)
    saved.save_pretrained(model)
    runner = runner_of(task, model, max_new_tokens=24)
    if not allowed:
        with pytest.raises(ModelError) as raised:
            runner.run([record], params, RecordingMonitor())
        assert raised.value.code == "too_many_tokens"
        return
    count = CountTokens(runner._model)  # type: ignore[attr-defined]
    [outcome] = runner.run([record], params, RecordingMonitor())
    assert outcome.failure is None
    # Whisper finds out the language first, and goes over this noise twice.
    assert 0 < count.tokens <= (2 * 24 + 1 if isinstance(record, FileInput) else 24)


def test_a_worker_fails_the_job_at_once_before_it_loads_anything(
    environ: dict[str, str], tmp_path: Path, start_workers: Callable[..., Workers]
):
    start_workers(HUGQUEUE_MAX_NEW_TOKENS="20")
    (tmp_path / "a.txt").write_text("a\n")
    shell = Shell(environ, tmp_path)
    command = ("submit", "--task", "test-model", "a.txt", "--model", "no/such-model", "--wait")
    said = shell.run(*command, "-p", "max_new_tokens=21", status=1).stderr
    assert "too_many_tokens: max_new_tokens=21: that is up to 21 tokens for one record" in said


def test_a_payload_with_any_byte_changed_is_either_read_or_refused():
    draw = random.Random(7)
    for _ in range(3000):
        data = bytearray(GOOD)
        for _ in range(draw.choice((1, 1, 2, 5))):
            data[draw.randrange(len(data))] = draw.randrange(256)
        with contextlib.suppress(PayloadError):
            decode_records(bytes(data[: draw.choice((len(data), len(data), draw.randrange(len(data))))]))
