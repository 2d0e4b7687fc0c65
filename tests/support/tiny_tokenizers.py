"""A small tokenizer of each kind, for tests of what reads the tokens and not the text."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, RobertaTokenizer

from tests.support.tiny_models import byte_level_files, wordpiece

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>", "<mask>")
#: To learn pieces from.
CORPUS = ("the river of Seoul is old", "Emil and Dora sleep in the house", "a dog and a cat", "Berlin is old") * 3


def _fast(tokenizer: Tokenizer, frame: str, limit: int) -> PreTrainedTokenizerFast:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=frame, pair=f"{frame} {frame.replace('$A', '$B')}", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        mask_token="<mask>", cls_token="<s>", sep_token="</s>", model_max_length=limit,
    )  # fmt: skip
    made.model_input_names = ["input_ids", "attention_mask"]
    return made


def byte_level(frame: str = "<s> $A </s>", limit: int = 64) -> PreTrainedTokenizerFast:
    """As ModernBERT has it; with the frame "<s> $A" as Llama 3. Cuts the first word of a text otherwise than others."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=list(SPECIALS), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _fast(tokenizer, frame, limit)


def unigram(frame: str = "<s> $A </s>", limit: int = 64) -> PreTrainedTokenizerFast:
    """As sentencepiece has it for XLM-R; with the frame "$A </s>" for T5, with "<s> $A" for Gemma."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=list(SPECIALS), unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([*CORPUS, "abcdefghijklmnopqrstuvwxyz"], trainer)
    return _fast(tokenizer, frame, limit)


def _roberta(directory: Path, *, blank: bool) -> RobertaTokenizer:
    vocabulary, merges = byte_level_files(directory)
    return RobertaTokenizer(vocab=vocabulary, merges=merges, add_prefix_space=blank, model_max_length=64)


#: Each makes one, and may write files of its own to a directory.
TOKENIZERS: Mapping[str, Callable[[Path], Any]] = {
    "wordpiece": wordpiece,
    "byte-level": lambda _: byte_level(),
    "byte-level of RoBERTa": lambda directory: _roberta(directory, blank=False),
    "byte-level with a blank before": lambda directory: _roberta(directory, blank=True),
    "byte-level with bos alone": lambda _: byte_level("<s> $A"),
    "unigram": lambda _: unigram(),
    "unigram with eos alone": lambda _: unigram("$A </s>"),
}
