"""Answers chats by llama.cpp, several sequences at once. Arguments: GGUF_DIRECTORY PRECISION NEW_TOKENS CACHE.

llama-cpp-python's own `create_chat_completion` takes one chat at a time; this uses the functions of llama.h below it,
as llama.cpp's `examples/parallel` does. The weights of the package are first converted to the precision asked for.
"""

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
from serving import Run, serve

#: Of llama.h: LLAMA_FTYPE_ALL_F32 and LLAMA_FTYPE_MOSTLY_BF16.
_TYPES = {"float32": 0, "bfloat16": 32}
_MOST = 64  # sequences at once
_CONTEXT = 256  # tokens of a sequence
_BATCH = 2048  # tokens of one call


def main() -> None:
    """Serve SmolLM2 in the precision named on the command line."""
    directory, precision, new_tokens, cache = sys.argv[1:]
    file = _converted(next(Path(directory).glob("*.gguf")), precision, Path(cache))
    serve(lambda: _load(file, int(new_tokens)))


def _converted(source: Path, precision: str, cache: Path) -> Path:
    target = cache / f"smollm2-{precision}.gguf"
    if not target.exists():
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.allow_requantize = _TYPES[precision], True
        if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
            raise RuntimeError(f"llama.cpp could not convert {source} to {precision}")
    return target


def _load(file: Path, new_tokens: int) -> Run:
    llama = llama_cpp.Llama(str(file), n_ctx=_CONTEXT, n_threads=os.cpu_count(), verbose=False)
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_seq_max = _MOST * _CONTEXT, _MOST
    params.n_batch = params.n_ubatch = _BATCH
    params.n_threads = params.n_threads_batch = os.cpu_count()
    context = llama_cpp.llama_init_from_model(llama._model.model, params)
    return lambda chats, at_once: _answer(llama, context, chats, at_once, new_tokens)


class _Sequence:
    """A chat that is being answered, in its place of the cache."""

    def __init__(self, place: int, prompt: list[int]) -> None:
        self.place, self.prompt, self.answer, self.row = place, prompt, [], -1

    @property
    def pending(self) -> list[int]:
        """The tokens that the next call takes: the prompt, then the last token."""
        return self.answer[-1:] or self.prompt

    @property
    def start(self) -> int:
        """The position of the first of them."""
        return len(self.prompt) + len(self.answer) - len(self.pending)


def _answer(llama: Any, context: Any, chats: Sequence[str], at_once: int, new_tokens: int) -> list[str]:
    """Answer greedily; a sequence that ends makes place for the next chat."""
    prompts = enumerate(llama.tokenize(_prompt(chat).encode(), add_bos=False, special=True) for chat in chats)
    answers: dict[int, list[int]] = {}
    free, running = list(range(min(at_once, _MOST))), {}
    end = llama.token_eos()
    while True:
        running |= {number: _Sequence(free.pop(), prompt) for number, prompt in _some(prompts, len(free))}
        if not running:
            return [llama.detokenize(answers[number]).decode(errors="replace") for number in range(len(chats))]
        _step(context, list(running.values()), llama.n_vocab())
        for number, sequence in list(running.items()):
            token = sequence.answer[-1]
            if token == end or len(sequence.answer) == new_tokens:
                answers[number] = [one for one in sequence.answer if one != end]
                llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(context), sequence.place, -1, -1)
                free.append(sequence.place)
                del running[number]


def _some(prompts: Iterator[tuple[int, list[int]]], count: int) -> Iterator[tuple[int, list[int]]]:
    return (one for _, one in zip(range(count), prompts, strict=False))


def _step(context: Any, sequences: Sequence[_Sequence], vocabulary: int) -> None:
    """Run the pending tokens of the sequences, at most `_BATCH` a call, and append the next token of each."""
    import numpy as np

    waiting = list(sequences)
    while waiting:
        taken, size = [], 0
        while waiting and size + len(waiting[0].pending) <= _BATCH:
            size += len(waiting[0].pending)
            taken.append(waiting.pop(0))
        batch = llama_cpp.llama_batch_init(size, 0, 1)
        for sequence in taken:
            _add(batch, sequence)
        if llama_cpp.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        for sequence in taken:
            scores = llama_cpp.llama_get_logits_ith(context, sequence.row)
            sequence.answer.append(int(np.ctypeslib.as_array(scores, (vocabulary,)).argmax()))
        llama_cpp.llama_batch_free(batch)


def _add(batch: Any, sequence: _Sequence) -> None:
    for offset, token in enumerate(sequence.pending):
        at = batch.n_tokens
        batch.token[at], batch.pos[at] = token, sequence.start + offset
        batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = 1, sequence.place, False
        batch.n_tokens += 1
    sequence.row = batch.n_tokens - 1
    batch.logits[sequence.row] = True


def _prompt(chat: str) -> str:
    """Return SmolLM2's chat template with its default system message."""
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{chat}<|im_end|>\n<|im_start|>assistant\n"


if __name__ == "__main__":
    main()
