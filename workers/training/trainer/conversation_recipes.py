"""Recipes for conversations: chats, of which the assistant's words are learned, and preferences between two answers.

The tokens are those that TRL makes of the same examples. What is too long is cut like other texts.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from common.errors import UsageError
from common.training.conversations import CHOSEN, REJECTED, common_length
from common.training.kinds import Example
from common.training.labels import Labels
from common.training.options import TrainingOptions
from workers.inference.loading.loader import missing_library
from workers.training.trainer.chat_masks import ChatTokenizer, tools_of
from workers.training.trainer.job_trainer import TrainerKind
from workers.training.trainer.metrics import IGNORE_INDEX
from workers.training.trainer.recipes import AT_END, COMPLETIONS, PROMPTS, EncodedExamples, TaskRecipe

T = TypeVar("T")

#: What was done to chats of which no answer begins early enough.
LEFT_OUT = "left out: no answer begins early enough"
_NO_STOP = (
    "The chat template ends an answer with no special token: the model may not learn where to stop. Use a template "
    "that does, with the end inside {% generation %} if it has such marks."
)


def _encode_chats(tokenizer: Any, examples: Sequence[Example], _: Labels, max_tokens: int) -> EncodedExamples:
    """Learn the assistant's words of each chat; one that is too long is cut at its end."""
    chats = ChatTokenizer(tokenizer)
    columns: dict[str, list[Any]] = {"input_ids": [], "labels": []}
    truncated, left_out, stops = Counter[str](), [], True
    for number, found in enumerate(_each(examples, lambda one: chats.masked(one["messages"], tools_of(one)))):
        stops = stops and chats.ends_with_special_token(found)
        ids, learned = found.ids[:max_tokens], found.learned[:max_tokens]
        if len(found.ids) > max_tokens:
            truncated[AT_END if any(learned) else LEFT_OUT] += 1
        if not any(learned):
            left_out.append(number)
            continue
        columns["input_ids"].append(ids)
        columns["labels"].append([id if bit else IGNORE_INDEX for id, bit in zip(ids, learned, strict=True)])
    return EncodedExamples(columns, truncated, left_out=left_out, notes=() if stops else (_NO_STOP,))


def _encode_preferences(tokenizer: Any, examples: Sequence[Example], _: Labels, max_tokens: int) -> EncodedExamples:
    """Tokenize prompts and both answers; a prompt that leaves an answer too little room loses its beginning."""
    chats = None if all(isinstance(example["prompt"], str) for example in examples) else ChatTokenizer(tokenizer)
    columns: dict[str, list[Any]] = {name: [] for name in ("prompt_ids", "chosen_ids", "rejected_ids", "length")}
    truncated = Counter[str]()
    for parts in _each(examples, lambda one: _preference_ids(tokenizer, chats, one)):
        prompt, *answers = parts
        longest = max(map(len, answers))
        if len(prompt) + longest > max_tokens:
            prompt = _without_beginning(prompt, max_tokens - longest, tokenizer.bos_token_id)
            truncated[COMPLETIONS if longest > max_tokens else PROMPTS] += 1
        chosen, rejected = (answer[:max_tokens] for answer in answers)
        length = len(prompt) + len(chosen) + len(rejected)
        for name, value in zip(columns, (prompt, chosen, rejected, length), strict=True):
            columns[name].append(value)
    return EncodedExamples(columns, truncated)


def _preference_ids(tokenizer: Any, chats: ChatTokenizer | None, example: Example) -> list[list[int]]:
    """Return the tokens of the prompt, of the chosen and of the rejected answer.

    Answers begin where their tokens first differ from the prompt's, as in TRL: a template may end a prompt for an
    answer otherwise than it begins the answer.
    """
    prompt = example["prompt"]
    if isinstance(prompt, str) or chats is None:
        end = tokenizer.eos_token or ""
        answers = [example[name] for name in (CHOSEN, REJECTED)]
        ended = [prompt + (answer if answer.endswith(end) else answer + end) for answer in answers]
        before, *wholes = tokenizer([prompt, *ended], verbose=False)["input_ids"]
    else:
        tools = tools_of(example)
        before = chats.ids(prompt, tools, prompt=True)
        wholes = [chats.ids([*prompt, *example[name]], tools) for name in (CHOSEN, REJECTED)]
    begin = min(common_length(before, whole) for whole in wholes)
    return [before[:begin], *(whole[begin:] for whole in wholes)]


def _without_beginning(ids: list[int], size: int, begin: int | None) -> list[int]:
    """Return the last `size` tokens, after the token that begins a text if there is room and they began with it."""
    if size <= 0:
        return []
    kept = ids[len(ids) - size :]
    return [begin, *kept[1:]] if begin is not None and ids[0] == begin else kept


def _each(examples: Sequence[Example], encode: Callable[[Example], T]) -> Iterator[T]:
    for number, example in enumerate(examples, 1):
        try:
            yield encode(example)
        except UsageError as error:
            raise UsageError(f"Example {number:,}: {error}.") from error


def _chat_trainer(_: TrainingOptions) -> TrainerKind:
    with _trl_required():
        from workers.training.trainer.trl_trainers import CHATS
    return CHATS


def _preference_trainer(options: TrainingOptions) -> TrainerKind:
    with _trl_required():
        from workers.training.trainer.trl_trainers import preferences
    return preferences(options)


@contextmanager
def _trl_required() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise missing_library(f"Learning from chats and preferences needs TRL ({error})", "trl") from error


def _chat_collator(tokenizer: Any) -> Any:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(tokenizer.pad_token_id)


def _preference_collator(tokenizer: Any) -> Any:
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    return DataCollatorForPreference(tokenizer.pad_token_id)


#: By the kind of labels.
CONVERSATION_RECIPES: dict[str, TaskRecipe] = {
    "messages": TaskRecipe("AutoModelForCausalLM", _encode_chats, _chat_collator, _chat_trainer),
    "preferences": TaskRecipe("AutoModelForCausalLM", _encode_preferences, _preference_collator, _preference_trainer),
}
