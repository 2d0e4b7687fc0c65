"""Tasks and modules of sentence-transformers: what the library itself gives for the same texts."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.sentence_transformer import modules

from common.errors import ModelError, WorkerError
from tests.support import tiny_models
from tests.support import tiny_sentence_transformers as tiny
from tests.support.embeddings import minilm_directory
from tests.support.pipeline_reference import run, runner_of
from tests.support.tiny_models import RecordingMonitor
from workers.inference.tasks.embedding import EmbeddingRunner
from workers.inference.tasks.module_runners import ModuleEmbeddingRunner, ModuleRerankRunner
from workers.inference.tasks.rerank import RerankRunner
from workers.inference.tasks.static_embedding import StaticEmbeddingRunner

LONG = "the old cat sleeps " * 40
TEXTS = [*tiny_models.TEXTS, LONG]
QUERIES = [
    {"query": "where is the cat?", "documents": TEXTS},
    {"query": "the dog", "documents": ["the old dog", "a cat in paris"]},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a model by the name of its function in `tiny_sentence_transformers`, or of a module."""
    base = tmp_path_factory.mktemp("models")

    def model(name: str) -> Path:
        if (base / name).exists():
            return base / name
        return getattr(tiny, name)(base / name) if hasattr(tiny, name) else tiny.with_module(name, base / name)

    return model


def vectors(outcomes: list[Any]) -> np.ndarray:
    assert [outcome.failure for outcome in outcomes] == [None] * len(outcomes)
    return np.stack([outcome.output for outcome in outcomes])


def refused(call: Callable[[], object]) -> ModelError:
    with pytest.raises(ModelError) as caught:
        call()
    return caught.value


# rerank


@pytest.mark.parametrize("saved", [True, False])
def test_documents_are_ranked_as_cross_encoders_rank_them(made, saved):
    directory = made("reranker") if saved else made("reranker").with_name("reranker-base")
    runner = runner_of("rerank", directory)
    assert isinstance(runner, RerankRunner)
    assert_ranked(runner, CrossEncoder(str(directory), device="cpu"))


def test_a_language_model_ranks_by_the_librarys_own_modules(made):
    runner = runner_of("rerank", made("generative_reranker"))
    assert isinstance(runner, ModuleRerankRunner)
    assert_ranked(runner, CrossEncoder(str(made("generative_reranker")), device="cpu"))
    assert refused(lambda: runner.run(QUERIES, {"max_length": 5}, RecordingMonitor())).code == "bad_param"


def assert_ranked(runner: Any, reference: CrossEncoder) -> None:
    monitor = RecordingMonitor()
    pair = {"query": QUERIES[0]["query"], "document": TEXTS[1]}
    *found, single = runner.run([*QUERIES, pair], {}, monitor)
    for query, outcome in zip(QUERIES, found, strict=True):
        expected = reference.rank(query["query"], query["documents"], batch_size=1)
        assert [one["index"] for one in outcome.output] == [one["corpus_id"] for one in expected]
        np.testing.assert_allclose(
            [one["score"] for one in outcome.output], [one["score"] for one in expected], atol=1e-5
        )
    assert [outcome.truncated for outcome in found] == [True, False]
    [score] = reference.predict([(pair["query"], pair["document"])])
    assert single.output == [{"index": 0, "score": pytest.approx(score, abs=1e-5)}]
    [best] = runner.run(QUERIES[:1], {"top_k": 1, "return_documents": True}, monitor)
    assert best.output[0]["document"] == TEXTS[found[0].output[0]["index"]]
    assert len(best.output) == 1
    if isinstance(runner, RerankRunner):
        assert any(len(batch) > 1 for batch in monitor.batches)  # pairs of several records


def test_a_model_with_several_labels_gives_all_scores_in_the_documents_order(tmp_path):
    directory = tiny.reranker(tmp_path / "model", ("no", "maybe", "yes"))
    assert "return_all_scores" in refused(lambda: run("rerank", directory, QUERIES)).message
    reference = CrossEncoder(str(directory), device="cpu")
    pairs = [(QUERIES[0]["query"], document) for document in TEXTS]
    for params, options in (({}, {}), ({"function_to_apply": "softmax"}, {"apply_softmax": True})):
        outcome, _ = run("rerank", directory, QUERIES, return_all_scores=True, **params)
        assert [one["index"] for one in outcome.output] == list(range(len(TEXTS)))
        expected = reference.predict(pairs, **options)
        np.testing.assert_allclose([one["scores"] for one in outcome.output], expected, atol=1e-5)


def test_activation_prompt_and_length_are_those_of_model_and_job(made, tmp_path):
    directory = Path(shutil.copytree(made("reranker"), tmp_path / "model"))
    general = directory / "config_sentence_transformers.json"
    config = json.loads(general.read_text())
    general.write_text(json.dumps(config | {"activation_fn": "torch.nn.modules.linear.Identity"}))
    reference = CrossEncoder(str(directory), device="cpu")
    pairs = [("the cat", text) for text in TEXTS]
    record = {"query": "the cat", "documents": TEXTS}

    def scores(**params: Any) -> list[float]:
        [outcome] = run("rerank", directory, [record], **params)
        ordered = sorted(outcome.output, key=lambda one: one["index"])
        return [one["score"] for one in ordered]

    np.testing.assert_allclose(scores(), reference.predict(pairs), atol=1e-5)
    np.testing.assert_allclose(scores(prompt_name="ask"), reference.predict(pairs, prompt_name="ask"), atol=1e-5)
    sigmoid = reference.predict(pairs, activation_fn=torch.nn.Sigmoid())
    np.testing.assert_allclose(scores(function_to_apply="sigmoid"), sigmoid, atol=1e-5)
    shorter = CrossEncoder(str(directory), device="cpu", max_length=9)
    np.testing.assert_allclose(scores(max_length=9), shorter.predict(pairs), atol=1e-5)
    general.write_text(json.dumps(config | {"activation_fn": "os.system"}))
    assert refused(lambda: runner_of("rerank", directory)).code == "unknown_module"


def test_bad_queries_fail_alone(made):
    records = [
        {"query": "a cat"},
        {"query": "a cat", "documents": []},
        {"query": "a cat", "documents": "the dog"},
        {"query": "a cat", "documents": ["the dog", " "]},
        {"query": "a cat", "documents": ["the dog", 5]},
        QUERIES[1],
    ]
    *bad, good = run("rerank", made("reranker"), records)
    failures = [outcome.failure for outcome in bad]
    assert [failure.code for failure in failures] == [
        *("missing_field", "wrong_type", "wrong_type", "empty_text", "wrong_type")
    ]
    assert "empty list" in failures[1].message and "documents[1]" in failures[3].message
    assert len(good.output) == 2


def test_a_model_without_the_head_is_no_reranker(tmp_path):
    directory = tiny_models.masked_bert(tmp_path / "model")
    assert refused(lambda: runner_of("rerank", directory)).code == "missing_weights"
    assert "--task embedding" in refused(lambda: runner_of("rerank", minilm_directory())).message


# Sparse vectors, and one vector for each token


@pytest.mark.parametrize("params", [{}, {"max_active_dims": 5}, {"task": "query"}, {"prompt": "a cat "}])
def test_sparse_vectors_are_those_of_sparse_encoders(made, params):
    options = dict(params)
    reference = SparseEncoder(str(made("sparse")), device="cpu")
    encode = reference.encode_query if options.pop("task", None) else reference.encode
    expected = encode(TEXTS, convert_to_sparse_tensor=False, **options).numpy()
    outcomes = run("sparse-embedding", made("sparse"), TEXTS, **params)
    found = np.zeros_like(expected)
    for row, outcome in zip(found, outcomes, strict=True):
        assert list(outcome.output["indices"]) == sorted(outcome.output["indices"])
        row[outcome.output["indices"]] = outcome.output["values"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert [outcome.truncated for outcome in outcomes] == [text == LONG for text in TEXTS]


def test_tokens_name_the_dimensions_of_a_sparse_vector(made):
    [outcome] = run("sparse-embedding", made("sparse"), TEXTS[:1], tokens=True, max_active_dims=4)
    [expected] = SparseEncoder(str(made("sparse")), device="cpu").decode(
        SparseEncoder(str(made("sparse")), device="cpu").encode(TEXTS[:1], max_active_dims=4)
    )
    assert set(outcome.output["tokens"]) == {token for token, _ in expected}


@pytest.mark.parametrize("task", [None, "query", "document"])
def test_vectors_of_tokens_are_those_of_multi_vector_encoders(made, task):
    reference = MultiVectorEncoder(str(made("multi_vector")), device="cpu")
    encode = {"query": reference.encode_query, "document": reference.encode_document}.get(task, reference.encode)
    outcomes = run("multi-vector-embedding", made("multi_vector"), TEXTS, **({"task": task} if task else {}))
    for outcome, expected in zip(outcomes, encode(TEXTS), strict=True):
        np.testing.assert_allclose(np.stack(outcome.output), np.asarray(expected), atol=1e-5)
    assert outcomes[-1].truncated
    if task == "query":
        assert {len(outcome.output) for outcome in outcomes} == {12}


def test_the_files_of_stanfords_colbert_are_read(tmp_path):
    directory = tiny_models.masked_bert(tmp_path / "model")
    weights = {name: value for name, value in load_file(directory / "model.safetensors").items() if "bert." in name}
    torch.manual_seed(0)
    save_file(weights | {"linear.weight": torch.randn(16, 32)}, directory / "model.safetensors", {"format": "pt"})
    change(directory / "config.json", architectures=["HF_ColBERT"])
    change(directory / "artifact.metadata", query_maxlen=10, doc_maxlen=20, attend_to_mask_tokens=False)
    reference = MultiVectorEncoder(str(directory), device="cpu")
    runner = runner_of("multi-vector-embedding", directory)
    for task, encode in (("query", reference.encode_query), ("document", reference.encode_document)):
        found = runner.run(TEXTS, {"task": task}, RecordingMonitor())
        for outcome, expected in zip(found, encode(TEXTS), strict=True):
            np.testing.assert_allclose(np.stack(outcome.output), np.asarray(expected), atol=1e-5)
    assert runner.output_type({}).value_type.list_size == 16


@pytest.mark.parametrize("task", ["sparse-embedding", "multi-vector-embedding"])
def test_a_model_of_another_kind_is_refused(task, made, tmp_path):
    assert "--task embedding" in refused(lambda: runner_of(task, minilm_directory())).message
    plain = tiny_models.tagger(tmp_path / "model")
    assert refused(lambda: runner_of(task, plain)).code == "missing_weights"
    assert refused(lambda: runner_of("embedding", made("sparse"))).code == "unknown_module"
    assert "hallo" in refused(lambda: run("sparse-embedding", made("sparse"), TEXTS, task="hallo")).message


# Similarity


@pytest.mark.parametrize("similarity", [None, "cosine", "dot", "euclidean", "manhattan"])
def test_similarities_are_those_of_sentence_transformers(made, tmp_path, similarity):
    directory = Path(shutil.copytree(made("static"), tmp_path / "model"))
    general = directory / "config_sentence_transformers.json"
    general.write_text(json.dumps(json.loads(general.read_text()) | {"similarity_fn_name": "manhattan"}))
    reference = SentenceTransformer(str(directory), device="cpu", similarity_fn_name=similarity)
    records = [
        {"source_sentence": "the old cat", "sentences": TEXTS},
        {"source_sentence": TEXTS[0], "sentences": TEXTS},
    ]
    params = {"similarity": similarity} if similarity else {}
    outcomes = run("sentence-similarity", directory, records, **params)
    for record, outcome in zip(records, outcomes, strict=True):
        one = reference.encode([record["source_sentence"]])
        expected = reference.similarity(one, reference.encode(record["sentences"]))[0]
        np.testing.assert_allclose(outcome.output, expected.numpy(), atol=1e-5)


def test_similarities_of_minilm_and_their_bad_records():
    reference = SentenceTransformer(str(minilm_directory()), device="cpu")
    record = {"source_sentence": "A cat sleeps.", "sentences": ["A cat is asleep.", "Stocks fell.", "word " * 600]}
    monitor = RecordingMonitor()
    found, *bad = runner_of("sentence-similarity", minilm_directory()).run(
        [record, {"source_sentence": "a"}, {"source_sentence": "a", "sentences": [""]}], {}, monitor
    )
    expected = reference.similarity(
        reference.encode([record["source_sentence"]]), reference.encode(record["sentences"])
    )
    np.testing.assert_allclose(found.output, expected[0].numpy(), atol=1e-5)
    assert found.truncated
    assert [outcome.failure.code for outcome in bad] == ["missing_field", "empty_text"]
    assert {position for batch in monitor.batches for position in batch} == {0}


# Every module of the library


@pytest.mark.parametrize("name", tiny.MODULES)
def test_every_module_gives_what_it_gives_in_sentence_transformers(made, name):
    directory = made(name)
    runner = runner_of("embedding", directory)
    assert type(runner) is (StaticEmbeddingRunner if name == "StaticEmbedding" else ModuleEmbeddingRunner)
    reference = SentenceTransformer(str(directory), device="cpu")
    texts = tiny_models.TEXTS
    np.testing.assert_allclose(
        vectors(runner.run(texts, {}, RecordingMonitor())), reference.encode(texts, batch_size=1), atol=1e-5
    )
    cut = {"truncate_dim": 4, "normalize": True}
    np.testing.assert_allclose(
        vectors(runner.run(texts, cut, RecordingMonitor())),
        reference.encode(texts, batch_size=1, truncate_dim=4, normalize_embeddings=True),
        atol=1e-5,
    )
    assert runner.output_type(cut).list_size == 4


@pytest.mark.parametrize(
    ("task", "name", "together"),
    [
        ("embedding", "LayerNorm", True),
        ("embedding", "CNN", False),  # sees the padding
        ("sparse-embedding", "sparse", True),
        ("multi-vector-embedding", "multi_vector", True),
    ],
)
def test_texts_share_batches_in_half_precision_too(made, task, name, together):
    runner = runner_of(task, made(name), dtype="bfloat16")
    assert (runner.budget.items > 1) is together


def test_no_module_of_the_library_is_left_out():
    fast = {"Pooling", "Dense", "Normalize"}
    abstract = {"Module", "InputModule", "Asym"}
    assert {*tiny.MODULES, *fast, *abstract} == set(modules.__all__)


def test_a_router_sends_queries_and_documents_their_ways(made):
    directory = made("Router")
    reference, runner = SentenceTransformer(str(directory), device="cpu"), runner_of("embedding", directory)
    for task, encode in (("query", reference.encode_query), ("document", reference.encode_document)):
        found = vectors(runner.run(TEXTS, {"task": task}, RecordingMonitor()))
        np.testing.assert_allclose(found, encode(TEXTS, batch_size=1), atol=1e-5)
    message = refused(lambda: runner.run(TEXTS, {"task": "image"}, RecordingMonitor())).message
    assert "query, document" in message


@pytest.mark.parametrize("task", ["query", "document"])
def test_the_fast_path_takes_queries_and_documents_too(tmp_path, task):
    bert = tiny_models.masked_bert(tmp_path / "bert")
    parts = [modules.Transformer(str(bert)), modules.Pooling(32)]
    prompts = {"query": "the old ", "passage": "a "}
    SentenceTransformer(modules=parts, prompts=prompts, default_prompt_name="passage", device="cpu").save(
        str(tmp_path / "model")
    )
    runner = runner_of("embedding", tmp_path / "model")
    assert isinstance(runner, EmbeddingRunner)
    reference = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    encode = {"query": reference.encode_query, "document": reference.encode_document}[task]
    found = vectors(runner.run(TEXTS, {"task": task}, RecordingMonitor()))
    np.testing.assert_allclose(found, encode(TEXTS), atol=1e-5)


def test_static_models_take_prompts_and_pieces(made):
    runner, reference = runner_of("embedding", made("static")), SentenceTransformer(str(made("static")), device="cpu")
    found = vectors(runner.run(TEXTS, {"prompt_name": "query"}, RecordingMonitor()))
    np.testing.assert_allclose(found, reference.encode(TEXTS, prompt_name="query"), atol=1e-5)
    [outcome] = runner.run([LONG], {"split_tokens": 30, "split_overlap": 5}, RecordingMonitor())
    assert len(outcome.output) > 3
    for piece in outcome.output:
        np.testing.assert_allclose(piece["vector"], reference.encode(LONG[piece["start"] : piece["end"]]), atol=1e-5)


def test_the_files_of_model2vec_are_read(made, tmp_path):
    directory = Path(shutil.copytree(made("StaticEmbedding"), tmp_path / "model"))
    [path] = directory.rglob("model.safetensors")
    table = load_file(path)["embedding.weight"]
    mapping, weights = torch.arange(len(table)).flip(0), torch.rand(len(table))
    save_file({"embeddings": table, "mapping": mapping, "weights": weights}, path)
    found = vectors(run("embedding", directory, TEXTS))
    np.testing.assert_allclose(found, SentenceTransformer(str(directory), device="cpu").encode(TEXTS), atol=1e-5)
    save_file({"other": table}, path)
    assert refused(lambda: runner_of("embedding", directory)).code == "missing_weights"


def test_a_text_that_looks_like_a_path_is_a_text(made, tmp_path):
    image = tmp_path / "a.png"
    image.write_bytes(b"not an image")
    [named, absent] = run("embedding", made("Transformer"), [str(image), "http://127.0.0.1:9/a.png"])
    assert named.failure is None and absent.failure is None


def test_without_the_library_only_its_own_modules_are_missing(made, monkeypatch):
    directories = [made(name) for name in ("reranker", "static", "CNN", "sparse")]
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    assert isinstance(runner_of("rerank", directories[0]), RerankRunner)
    assert isinstance(runner_of("embedding", directories[1]), StaticEmbeddingRunner)
    for task, directory in (("embedding", directories[2]), ("sparse-embedding", directories[3])):
        with pytest.raises(WorkerError, match=r"worker,sentence-transformers") as caught:
            runner_of(task, directory)
        assert caught.value.code == "missing_library"


# Files that are refused


def change(path: Path, **values: Any) -> None:
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(config | values))


@pytest.mark.parametrize(
    ("file", "values", "code"),
    [
        ("router_config.json", {"types": {"query_0_Transformer": "os.system"}}, "unknown_module"),
        ("router_config.json", {"types": {"../other": "sentence_transformers.models.Pooling"}}, "model_not_allowed"),
        ("router_config.json", {"types": ["a"]}, "not_a_model"),
        ("query_0_Transformer/sentence_bert_config.json", {"model_kwargs": {"subfolder": "a"}}, "model_not_allowed"),
        (
            "query_0_Transformer/sentence_bert_config.json",
            {"model_kwargs": {"attn_implementation": "someone/kernels"}},
            "model_not_allowed",
        ),
        ("query_0_Transformer/config.json", {"auto_map": {"AutoModel": "mine.Model"}}, "custom_code"),
    ],
    ids=str,
)
def test_what_a_configuration_names_stays_inside_the_model_and_the_library(made, tmp_path, file, values, code):
    directory = Path(shutil.copytree(made("Router"), tmp_path / "model"))
    change(directory / file, **values)
    assert refused(lambda: runner_of("embedding", directory)).code == code


def test_a_module_of_another_package_is_not_imported(made, tmp_path):
    directory = Path(shutil.copytree(made("CNN"), tmp_path / "model"))
    listed = json.loads((directory / "modules.json").read_text())
    for kind in ("custom_st.CNN", "sentence_transformers_evil.CNN", "os.system", None):
        (directory / "modules.json").write_text(json.dumps([*listed[:1], listed[1] | {"type": kind}, *listed[2:]]))
        assert refused(lambda: runner_of("embedding", directory)).code == "unknown_module"


def test_a_tokenizer_opens_only_what_is_beside_it(made, tmp_path):
    directory = Path(shutil.copytree(made("CNN"), tmp_path / "model"))
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text("{}")
    change(directory / "tokenizer_config.json", tokenizer_file=str(elsewhere), vocab_file="/etc/hostname")
    expected = vectors(run("embedding", made("CNN"), TEXTS))
    np.testing.assert_allclose(vectors(run("embedding", directory, TEXTS)), expected, atol=1e-6)
    words = Path(shutil.copytree(made("WordEmbeddings"), tmp_path / "words"))
    [config] = words.rglob("wordembedding_config.json")
    change(config.with_name("tokenizer_config.json"), vocab_file="/etc/hostname")
    assert refused(lambda: runner_of("embedding", words)).code == "model_not_allowed"


def test_pickles_and_missing_weights_are_refused(made, tmp_path):
    directory = Path(shutil.copytree(made("CNN"), tmp_path / "model"))
    [weights] = (directory / "1_CNN").glob("*.safetensors")
    weights.rename(weights.with_name("pytorch_model.bin"))
    assert refused(lambda: runner_of("embedding", directory)).code == "unsafe_weights"
    save_file({"other": torch.zeros(1)}, weights)
    assert refused(lambda: runner_of("embedding", directory)).code == "missing_weights"
    shutil.copytree(made("CNN"), tmp_path / "other")
    path = tmp_path / "other" / "model.safetensors"
    kept = {name: value for name, value in load_file(path).items() if "layer.1" not in name}
    save_file(kept, path, metadata={"format": "pt"})
    error = refused(lambda: runner_of("embedding", tmp_path / "other"))
    assert (error.code, "layer.1" in error.message) == ("missing_weights", True)


def test_a_module_without_files_needs_no_directory(made, tmp_path):
    directory = Path(shutil.copytree(made("LayerNorm"), tmp_path / "model"))
    listed = json.loads((directory / "modules.json").read_text())
    normalize = {"idx": 3, "name": "3", "path": "3_Normalize", "type": "sentence_transformers.models.Normalize"}
    (directory / "modules.json").write_text(json.dumps([*listed, normalize]))  # as on the Hub, where it is not stored
    expected = SentenceTransformer(str(directory), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors(run("embedding", directory, TEXTS)), expected, atol=1e-5)
