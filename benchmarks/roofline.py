"""Raw forward pass: an upper bound, as the device runs nothing but the forward pass.

Texts are tokenized beforehand, batches hold one exact length over the whole input, so that there is neither padding
nor a mask; for fill-mask the vocabulary head runs on the masked positions alone.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.strategies import LIMIT, Strategy, Work, keeping

#: Tokens in one batch; 1,024 to 4,096 make no difference on two cores. A GPU needs more.
TOKENS = {False: 2048, True: 65536}
_CLASSES = {
    "embedding": "AutoModel",
    "fill-mask": "AutoModelForMaskedLM",
    "text-classification": "AutoModelForSequenceClassification",
}


def packed_forward(work: Work, *, faster_layers: bool) -> Strategy:
    """Return the forward pass alone over texts that it tokenizes on the first call and remembers.

    Args:
        work: what to do.
        faster_layers: use the linear layers of the runners instead of the model's own, and keep memory as the device
            process does.
    """
    import torch
    import transformers

    from workers.inference.loading.cpu_layers import use_onednn_linear

    tokenizer = transformers.AutoTokenizer.from_pretrained(work.model)
    model = getattr(transformers, _CLASSES[work.task]).from_pretrained(work.model, dtype=work.dtype).eval()
    model.to(work.device)
    if faster_layers:
        use_onednn_linear(model)
    remembered: dict[tuple[str, ...], list[Any]] = {}

    @keeping(faster_layers)
    def run(texts: Sequence[str]) -> list[Any]:
        key = tuple(texts)
        if key not in remembered:
            found = _batches(tokenizer, texts, LIMIT.get(work.task, 512), TOKENS[work.on_gpu])
            remembered[key] = [batch.to(work.device) for batch in found]
        with torch.inference_mode():
            for batch in remembered[key]:
                _forward(model, batch, work.task, tokenizer.mask_token_id)
        if work.on_gpu:
            torch.cuda.synchronize()
        return []

    return run


def _batches(tokenizer: Any, texts: Sequence[str], limit: int, tokens: int) -> Iterator[Any]:
    import torch

    by_length = defaultdict(list)
    for ids in tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]:
        by_length[len(ids)].append(ids)
    for length, rows in sorted(by_length.items()):
        count = max(1, tokens // length)
        for start in range(0, len(rows), count):
            yield torch.tensor(rows[start : start + count])


def _forward(model: Any, batch: Any, task: str, mask_id: int) -> None:
    if task != "fill-mask":
        model(input_ids=batch)
        return
    hidden = model.base_model(input_ids=batch).last_hidden_state
    model.cls(hidden[batch == mask_id])
