"""Answers chats by vLLM's offline engine. Arguments: MODEL PRECISION NEW_TOKENS."""

import os
import sys

from serving import Run, serve

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def main() -> None:
    """Serve the model named on the command line."""
    model, precision, new_tokens = sys.argv[1:]
    serve(lambda: _load(model, precision, int(new_tokens)))


def _load(model: str, precision: str, new_tokens: int) -> Run:
    from vllm import LLM, SamplingParams

    engine = LLM(model, dtype=precision, max_model_len=512, max_num_seqs=64, enable_prefix_caching=True)
    sampling = SamplingParams(temperature=0.0, max_tokens=new_tokens)

    def run(chats: list[str], _: int) -> list[str]:
        engine.reset_prefix_cache()  # the same prompts in each round would cost nothing from the second on
        messages = [[{"role": "user", "content": chat}] for chat in chats]
        return [found.outputs[0].text for found in engine.chat(messages, sampling, use_tqdm=False)]

    return run


if __name__ == "__main__":
    main()
