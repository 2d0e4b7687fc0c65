"""Tiny models with random weights, made on the spot: for tests of the runners, without the Hub."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaTokenizer,
    TapasConfig,
    TapasForQuestionAnswering,
    TapasTokenizer,
)

from common.errors import Cancelled

_WORDS = (
    "the a capital of france germany korea japan is paris berlin seoul tokyo and in i you we they go to school "
    "home work river city old new big small red blue cat dog bird runs sleeps eats likes very good bad news sports "
    "politics how many people live there what which where this example # ? . , ! : ' { } - 0 1 2 3 4 5 6 7 8 9"
)
_PIECES = "##s ##ing ##ed ##er ##ly 나는 학교 집 서울 ##에 ##은 ##는 ##이 간 ##다 있 오늘 날씨 가 좋"
WORDS, PIECES = _WORDS.split(), _PIECES.split()
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[EMPTY]")
VOCABULARY = (*SPECIALS, *WORDS, *PIECES, *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"))

#: Records of mixed length and script, without a mask.
TEXTS = (
    "the capital of france is paris.",
    "i go to school",
    "Cats sleep.",
    "나는 학교에 간다",
    "오늘 날씨가 좋다. 서울은 big city 😀",
    "a",
    "the old cat likes the small bird and the big dog likes the old cat very very much!",
    "how many people live in berlin, tokyo and seoul?",
    "🙂🙃 emoji alone 🐈‍⬛",
    "they eat, we work: you sleep - 1 2 3",
    "news " * 20,
    "red blue red blue red",
    "which city is old and which river is new? " * 3,
    "Berlin is in Germany",
    "서울은 한국에 있다",
    "work work work",
    "you and i and they go home to the river in the old city",
    "bad news",
    "good news, very good news!",
    "what is this example of politics",
)
#: Korean that no vocabulary has whole, signs that tokenizers take apart, and the name of a special token.
STRANGE = ("안녕하세요", "naïve", "😀", "x1y2", "...", "[PAD]", "Ünïcode", "서울에서")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role + ': ' + message.content + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
#: One that shows the model its tools, as those that follow Hermes do, and the calls and results of earlier messages.
TOOL_TEMPLATE = (
    "{% if tools %}tools: {{ tools | tojson }} <tool_call>{% endif %}"
    "{% for message in messages %}{{ message.role + ': ' + message.content }}"
    "{% for call in message.tool_calls or [] %}{{ call.function.name }}({{ call.function.arguments.city }}){% endfor %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def mixed(count: int, mask: str | None = None, longest: int = 90) -> list[str]:
    """Return texts of 1 to `longest` words, English and Korean, most of them short; with a mask in each."""
    chance = random.Random(11)
    words = [word for word in VOCABULARY if word not in SPECIALS and not word.startswith("##")]
    found = []
    for _ in range(count):
        chosen = chance.choices([*words, *STRANGE], k=min(longest, round(chance.lognormvariate(2.2, 0.9)) + 1))
        if mask is not None:
            chosen.insert(chance.randrange(len(chosen) + 1), mask)
        found.append(" ".join(chosen))
    return found


class RecordingMonitor:
    """A monitor that records what it gets, and cancels the run after a number of ticks."""

    def __init__(self, cancel_after: int | None = None) -> None:
        self.batches: list[list[int]] = []
        self.ticks = 0
        self._cancel_after = cancel_after

    def batch(self, positions: Sequence[int]) -> None:
        self.batches.append(list(positions))

    def tick(self) -> None:
        self.ticks += 1
        if self._cancel_after is not None and self.ticks > self._cancel_after:
            raise Cancelled


class ForwardCount:
    """Counts the forward passes of whole models, head included, and the rows in them, while it is entered."""

    def __init__(self) -> None:
        self.passes = 0
        self.rows = 0

    def __enter__(self) -> "ForwardCount":
        self._hook = torch.nn.modules.module.register_module_forward_hook(self._count)
        return self

    def __exit__(self, *exc: object) -> None:
        self._hook.remove()

    def _count(self, module: torch.nn.Module, args: object, output: object) -> None:
        logits = getattr(output, "logits", None)
        if logits is not None:
            self.passes += 1
            self.rows += len(logits)


def wordpiece(directory: Path, limit: int = 64) -> BertTokenizer:
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = {piece: number for number, piece in enumerate(VOCABULARY)}
    tokenizer = BertTokenizer(vocab=vocabulary, model_max_length=limit)
    tokenizer.save_pretrained(directory)
    return tokenizer


def byte_level_files(directory: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Train a byte-level BPE on the texts of this module, and return its vocabulary and merges."""
    bpe = ByteLevelBPETokenizer()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"]
    bpe.train_from_iterator([*TEXTS, *WORDS], vocab_size=400, special_tokens=specials, show_progress=False)
    directory.mkdir(parents=True, exist_ok=True)
    bpe.save_model(str(directory))
    lines = (directory / "merges.txt").read_text().splitlines()
    merges = [tuple(line.split(" ")) for line in lines if not line.startswith("#version")]
    return bpe.get_vocab(), merges  # type: ignore[return-value]


def bert_config(**extra: object) -> BertConfig:
    return BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=64, pad_token_id=0, **SMALL, **extra)


def _save(model: torch.nn.Module, directory: Path) -> Path:
    with torch.no_grad():  # the usual initialization is so small that all scores come out alike
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    model.save_pretrained(directory)
    return directory


def masked_bert(directory: Path) -> Path:
    wordpiece(directory)
    torch.manual_seed(1)
    return _save(BertForMaskedLM(bert_config()), directory)


def masked_roberta(directory: Path) -> Path:
    vocabulary, merges = byte_level_files(directory)
    tokenizer = RobertaTokenizer(vocab=vocabulary, merges=merges)  # no model_max_length, as some on the Hub
    tokenizer.save_pretrained(directory)
    torch.manual_seed(2)
    # 66 positions of which RoBERTa uses 64: the first two are padding's.
    config = RobertaConfig(
        vocab_size=len(vocabulary), max_position_embeddings=66, pad_token_id=1, bos_token_id=0, eos_token_id=2, **SMALL
    )
    return _save(RobertaForMaskedLM(config), directory)


def causal_gpt2(
    directory: Path, *, pad: bool = False, chat: bool = True, positions: int = 96, template: str = CHAT_TEMPLATE
) -> Path:
    vocabulary, merges = byte_level_files(directory)
    end = "<|endoftext|>"
    tokenizer = GPT2Tokenizer(vocab=vocabulary, merges=merges, unk_token=end, bos_token=end, eos_token=end)
    if pad:
        tokenizer.pad_token = "<pad>"
    if chat:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    torch.manual_seed(3)
    stop = vocabulary[end]
    config = GPT2Config(
        vocab_size=len(vocabulary), n_positions=positions, n_embd=32, n_layer=2, n_head=2, bos_token_id=stop,
        eos_token_id=stop,
    )  # fmt: skip
    return _save(GPT2LMHeadModel(config), directory)


def causal_openai_gpt(directory: Path) -> Path:
    """An architecture that vLLM does not serve, not even by the code of transformers."""
    causal_gpt2(directory, chat=False)
    vocabulary = json.loads((directory / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    config = OpenAIGPTConfig(vocab_size=vocabulary, n_positions=96, n_embd=32, n_layer=2, n_head=2)
    return _save(OpenAIGPTLMHeadModel(config), directory)


def classifier(directory: Path, labels: Sequence[str] = ("bad", "good", "so-so")) -> Path:
    wordpiece(directory)
    torch.manual_seed(4)
    return _save(BertForSequenceClassification(_labeled(labels)), directory)


def natural_language_inference(directory: Path) -> Path:
    return classifier(directory, ("contradiction", "neutral", "entailment"))


def tagger(directory: Path) -> Path:
    wordpiece(directory)
    torch.manual_seed(5)
    return _save(BertForTokenClassification(_labeled(("O", "B-PER", "I-PER", "B-LOC", "I-LOC"))), directory)


def answering(directory: Path) -> Path:
    wordpiece(directory)
    torch.manual_seed(7)
    return _save(BertForQuestionAnswering(bert_config()), directory)


def table_answers(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = directory / "vocab.txt"
    vocabulary.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    TapasTokenizer(str(vocabulary), model_max_length=64).save_pretrained(directory)
    torch.manual_seed(6)
    config = TapasConfig(
        vocab_size=len(VOCABULARY), max_position_embeddings=64, pad_token_id=0, num_aggregation_labels=4,
        aggregation_labels={0: "NONE", 1: "SUM", 2: "AVERAGE", 3: "COUNT"}, no_aggregation_label_index=0, **SMALL,
    )  # fmt: skip
    return _save(TapasForQuestionAnswering(config), directory)


def _labeled(labels: Sequence[str]) -> BertConfig:
    names = dict(enumerate(labels))
    return bert_config(id2label=names, label2id={label: number for number, label in names.items()})
