"""Tiny models of sentence-transformers with random weights, one for each kind and each module of the library."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.sentence_transformer import modules
from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

from tests.support import tiny_media, tiny_models, tiny_multimodal
from tests.support.tiny_models import TEXTS

#: Of the transformers in `tests.support.tiny_models`.
WIDTH = 32
_WORDS = ["[PAD]", *sorted({word for text in TEXTS for word in text.split()})]


def reranker(directory: Path, labels: Sequence[str] = ("fits",)) -> Path:
    """Save a classifier as a cross-encoder, with a prompt."""
    base = tiny_models.classifier(directory.with_name(f"{directory.name}-base"), labels)
    CrossEncoder(str(base), device="cpu", prompts={"ask": "where is "}).save(str(directory))
    return directory


def generative_reranker(directory: Path) -> Path:
    """Save a language model that says "old" or "cat" as a cross-encoder."""
    base = tiny_models.causal_gpt2(directory.with_name(f"{directory.name}-base"), pad=True, chat=False)
    transformer = modules.Transformer(
        str(base), transformer_task="text-generation", processor_kwargs={"padding_side": "left"}
    )
    from sentence_transformers.cross_encoder.modules import LogitScore

    CrossEncoder(modules=[transformer, LogitScore(20, 30)], device="cpu").save(str(directory))
    return directory


def sparse(directory: Path) -> Path:
    """Save a masked language model as a SPLADE model."""
    base = tiny_models.masked_bert(directory.with_name(f"{directory.name}-base"))
    SparseEncoder(str(base), device="cpu", prompts={"query": "the old"}).save(str(directory))
    return directory


def multi_vector(directory: Path) -> Path:
    """Save an encoder as a late-interaction model that expands its queries."""
    base = tiny_models.masked_bert(directory.with_name(f"{directory.name}-base"))
    torch.manual_seed(0)
    model = MultiVectorEncoder(str(base), device="cpu", prompts={"query": "the old ", "document": "a "})
    model[0].query_expansion = {"strategy": "fixed", "attend": False, "length": 12}
    model[0].document_length = 20
    model.save(str(directory))
    return directory


def static(directory: Path) -> Path:
    """Save a table of vectors as a static model, with a dense layer and prompts."""
    base = tiny_models.masked_bert(directory.with_name(f"{directory.name}-base"))
    torch.manual_seed(0)
    tokenizer = modules.Transformer(str(base)).tokenizer
    parts = [modules.StaticEmbedding(tokenizer, embedding_dim=24), modules.Dense(24, 16), modules.Normalize()]
    SentenceTransformer(modules=parts, device="cpu", prompts={"query": "the old "}).save(str(directory))
    return directory


def vision_language(directory: Path) -> Path:
    """Save a LLaVA as an embedding model, which takes texts, images and both together as chat messages."""
    transformer = modules.Transformer(str(tiny_multimodal.llava(directory.with_name(f"{directory.name}-base"))))
    parts = [transformer, modules.Pooling(WIDTH, "lasttoken")]
    SentenceTransformer(modules=parts, device="cpu").save(str(directory))
    return directory


def encoder(bert: Path, **options: Any) -> modules.Transformer:
    return modules.Transformer(str(bert), **options)


def words(width: int) -> modules.WordEmbeddings:
    vectors = np.random.default_rng(0).normal(size=(len(_WORDS), width)).astype("float32")
    return modules.WordEmbeddings(WhitespaceTokenizer(_WORDS), vectors)


#: By the name of a module: the modules of a model that has it, given the directories of a BERT and of a CLIP.
MODULES: dict[str, Callable[[Path, Path], list[Any]]] = {
    "LayerNorm": lambda bert, _: [encoder(bert), modules.Pooling(WIDTH), modules.LayerNorm(WIDTH)],
    "Dropout": lambda bert, _: [encoder(bert), modules.Pooling(WIDTH), modules.Dropout(0.5)],
    "CNN": lambda bert, _: [encoder(bert), modules.CNN(WIDTH, 16), modules.Pooling(48)],
    "LSTM": lambda *_: [words(WIDTH), modules.LSTM(WIDTH, 16), modules.Pooling(WIDTH)],
    "WeightedLayerPooling": lambda bert, _: [
        encoder(bert, config_kwargs={"output_hidden_states": True}),
        modules.WeightedLayerPooling(WIDTH, num_hidden_layers=2, layer_start=1),
        modules.Pooling(WIDTH),
    ],
    "BoW": lambda *_: [modules.BoW(_WORDS)],
    "WordEmbeddings": lambda *_: [words(8), modules.Pooling(8)],
    "WordWeights": lambda *_: [words(8), modules.WordWeights(_WORDS, {"the": 0.1}), modules.Pooling(8)],
    "StaticEmbedding": lambda bert, _: [modules.StaticEmbedding(encoder(bert).tokenizer, embedding_dim=8)],
    "CLIPModel": lambda _, clip: [modules.CLIPModel(str(clip))],
    "Transformer": lambda _, clip: [encoder(clip)],  # texts and images
    "Router": lambda bert, _: [
        modules.Router.for_query_document(
            [encoder(bert), modules.Pooling(WIDTH, "cls")],
            [modules.StaticEmbedding(encoder(bert).tokenizer, embedding_dim=WIDTH)],
        )
    ],
}


def with_module(name: str, directory: Path) -> Path:
    """Save a model that has this module of sentence-transformers."""
    base = directory.with_name(f"{directory.name}-base")
    maker = tiny_media.clip if name in ("CLIPModel", "Transformer") else tiny_models.masked_bert
    maker(base)
    torch.manual_seed(0)
    SentenceTransformer(modules=MODULES[name](base, base), device="cpu").save(str(directory))
    return directory
