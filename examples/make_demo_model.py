"""Make the demo model: a small BERT and its WordPiece vocabulary, trained from scratch on text made here.

    python examples/make_demo_model.py --output examples/models/demo-fill-mask

Needs torch and transformers, no network and no data; takes a few minutes on one CPU core. The same seed on the same
machine with the same versions gives the same weights. It ends with status 1 and writes nothing if the model cannot
answer what `capitals.txt` asks.
"""

import argparse
import random
import string
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from demo_text.facts import capitals, knowledge, questions
from demo_text.sentences import masked, plain, slots
from demo_text.stories import KOREAN_PLACES, story, story_words
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

MAX_TOKENS = 128
VOCABULARY = 2400  #: learned pieces; the words worth asking for are added to them
PASS_MARK = 0.98  #: share of the questions that must be answered right

#: Sentences in one example, drawn for each batch. With a dozen the model does not learn to keep them apart.
LENGTHS = (1, 1, 1, 2, 3)
SENTENCES_PER_BATCH = 84
TOKEN_MASKS = 0.03  #: share of ordinary tokens hidden as well

IGNORED = -100  #: the label of a token that is not hidden

Corpus = tuple[list[str], list[str]]


def main() -> None:
    """Train, examine, save."""
    options = _options()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    rng = random.Random(options.seed)
    corpus = capitals(), knowledge()
    tokenizer = make_tokenizer([*corpus[0], *corpus[1], *(story(rng) for _ in range(5000))])
    model = make_model(tokenizer)
    train(model, tokenizer, _batches(corpus, tokenizer, rng), options.steps)
    right = examine(model, tokenizer)
    print(f"{right:.1%} of {len(questions())} capitals right, {model.num_parameters():,} parameters")
    place = answer(model, tokenizer, ["나는 [MASK]에 간다."])[0]
    print(f"나는 [MASK]에 간다. -> {place}")
    if right < PASS_MARK or place not in KOREAN_PLACES:
        raise SystemExit(f"not good enough: at least {PASS_MARK:.0%} and a place are expected; train for more --steps")
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="directory for model and tokenizer")
    parser.add_argument("--steps", type=int, default=3400, help="batches to train on (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    return parser.parse_args()


def make_tokenizer(sentences: list[str]) -> BertTokenizer:
    """Learn a lower-case WordPiece vocabulary in which every word worth asking for is one entry."""
    # Stripping accents would take every Hangul syllable apart into letters that no vocabulary here holds.
    settings = {"do_lower_case": True, "strip_accents": False, "model_max_length": MAX_TOKENS}
    texts = [plain(sentence).lower() for sentence in sentences]
    letters = sorted(set(string.printable.lower()).union(*texts) - set(string.whitespace))
    # Named beforehand, since the trainer numbers the letters inside words as its hash table happens to give them, and
    # would learn another vocabulary each time.
    inside = [f"##{letter}" for letter in letters]
    learned = BertTokenizer(**settings).train_new_from_iterator(
        texts, VOCABULARY, new_special_tokens=inside, initial_alphabet=letters, show_progress=False
    )
    pieces = sorted(learned.get_vocab(), key=learned.get_vocab().__getitem__)
    wanted = sorted(word.lower() for word in story_words().union(*map(slots, sentences)))
    entries = dict.fromkeys([*pieces, *wanted])
    return BertTokenizer(vocab={entry: number for number, entry in enumerate(entries)}, **settings)


def make_model(tokenizer: BertTokenizer) -> BertForMaskedLM:
    """Return an untrained model for the vocabulary of `tokenizer`."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=MAX_TOKENS,
        hidden_dropout_prob=0.0,  # the text is its own test: what is to be known is to be remembered
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    return BertForMaskedLM(config)


def _batches(corpus: Corpus, tokenizer: BertTokenizer, rng: random.Random) -> Iterator[dict[str, torch.Tensor]]:
    """Yield training batches without end: token ids, attention mask and labels, each (examples, tokens)."""
    while True:
        length = rng.choice(LENGTHS)
        sentences = [[_sentence(corpus, rng) for _ in range(length)] for _ in range(SENTENCES_PER_BATCH // length)]
        yield _batch(sentences, tokenizer, rng)


def _sentence(corpus: Corpus, rng: random.Random) -> str:
    """Draw a sentence: three in ten about capitals, five other facts, two stories."""
    about_capitals, about_everything = corpus
    lot = rng.random()
    if lot < 0.3:
        return rng.choice(about_capitals)
    return rng.choice(about_everything) if lot < 0.8 else story(rng)


def _batch(examples: list[list[str]], tokenizer: BertTokenizer, rng: random.Random) -> dict[str, torch.Tensor]:
    prompts = [_ask(sentences, rng) for sentences in examples]
    texts = [text for text, _ in prompts]
    answers = [word for _, words in prompts for word in words]
    batch = dict(tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False))
    return batch | {"labels": _hide(batch["input_ids"], answers, tokenizer)}


def _ask(sentences: list[str], rng: random.Random) -> tuple[str, list[str]]:
    """Join the sentences, hiding a word or more of each; return the text and the hidden words in order."""
    parts, answers = [], []
    for sentence in sentences:
        words = slots(sentence)
        hidden = {rng.randrange(len(words))} | {at for at in range(len(words)) if rng.random() < 0.05}
        parts.append(masked(sentence, hidden))
        answers += [words[at].lower() for at in sorted(hidden)]
    text = " ".join(parts)
    return text.removesuffix(".") if rng.random() < 0.2 else text, answers


def _hide(ids: torch.Tensor, answers: list[str], tokenizer: BertTokenizer) -> torch.Tensor:
    """Hide some more tokens of `ids`, in place; return the labels, `IGNORED` wherever nothing is hidden."""
    labels = torch.full_like(ids, IGNORED)
    # The words were hidden in the text, not among its tokens: `[MASK]이다` and `파리이다` are cut differently, and
    # it is the first that users write.
    labels[ids == tokenizer.mask_token_id] = torch.tensor(tokenizer.convert_tokens_to_ids(answers))
    ordinary = ~torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    more = ordinary & (torch.rand(ids.shape) < TOKEN_MASKS)
    labels[more] = ids[more]
    ids[more] = tokenizer.mask_token_id
    return labels


def train(
    model: BertForMaskedLM, tokenizer: BertTokenizer, batches: Iterator[dict[str, torch.Tensor]], steps: int
) -> None:
    """Train `model` in place for that many batches."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.1)
    started = time.monotonic()
    model.train()
    for step, batch in zip(range(1, steps + 1), batches, strict=False):
        loss = _loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 250 == 0:
            seconds = time.monotonic() - started
            print(f"step {step}: loss {loss:.3f}, {examine(model, tokenizer):.1%}, {seconds:.0f} s", flush=True)
            model.train()


def _loss(model: BertForMaskedLM, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the cross-entropy at the hidden positions; scoring the vocabulary there alone saves a third."""
    hidden = batch["labels"] != IGNORED
    states = model.bert(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    return torch.nn.functional.cross_entropy(model.cls(states[hidden]), batch["labels"][hidden])


def examine(model: BertForMaskedLM, tokenizer: BertTokenizer) -> float:
    """Return the share of the questions about capitals that the model answers right."""
    prompts = questions()
    answers = answer(model, tokenizer, list(prompts))
    return sum(map(str.__eq__, answers, prompts.values())) / len(prompts)


def answer(model: BertForMaskedLM, tokenizer: BertTokenizer, texts: list[str]) -> list[str]:
    """Return the likeliest word for the one mask in each text."""
    model.eval()
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**batch).logits[batch["input_ids"] == tokenizer.mask_token_id]
    return [tokenizer.convert_ids_to_tokens(best) for best in logits.argmax(-1).tolist()]


if __name__ == "__main__":
    main()
