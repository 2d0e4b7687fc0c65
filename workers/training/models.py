"""The model to train: its weights from a directory, its head made to measure, what had to be made up said once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import ModelError
from common.training.labels import Labels, in_order_of
from common.training.spec import Training
from workers.runners.batching import is_out_of_memory
from workers.runners.loading import LOAD_ERRORS, Source, load_config, load_tokenizer
from workers.runners.truncation import input_limit

#: Weights that a head can do without or that are computed: no word about them.
_POOLER = "pooler"
#: How many tokens texts may have where nothing else limits them.
_UNLIMITED = 2048


def load_base(
    auto_class: str, source: Source, labels: Labels, training: Training, note: Callable[[str], None]
) -> tuple[Any, Any]:
    """Return model (float32, with a head for `labels`) and tokenizer of `source`.

    Args:
        auto_class: name of the class of transformers with the task's head.
        source: the base model's directory, and the rules for opening it.
        labels: what the head is to tell apart.
        training: says whether LoRA is wanted.
        note: told of weights that are new.

    Raises:
        ModelError: the model cannot be loaded, or lacks weights beyond its head.
    """
    import transformers

    tokenizer = load_tokenizer(source)
    try:
        model, info = getattr(transformers, auto_class).from_pretrained(
            source.directory,
            config=_config(source, labels),
            dtype="float32",
            local_files_only=True,
            use_safetensors=None if source.allow_pickle else True,
            trust_remote_code=source.allow_remote_code,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except LOAD_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            "not_a_model", f"The model in {source.directory} cannot be loaded as {auto_class}: {error}"[:1000]
        ) from error
    _say_new_weights(model, info, source.directory, note)
    _give_padding(model, tokenizer)
    return (_with_adapter(model, training) if training.lora else model), tokenizer


def as_base_has_them(auto_class: str, source: Source, labels: Labels, note: Callable[[str], None]) -> Labels:
    """Return the labels in the order in which the base model's own head has them, where it tells the same apart.

    Raises:
        ModelError: as `load_config`.
    """
    found, said = in_order_of(labels, _classes_of(load_config(source), auto_class.removeprefix("AutoModel")))
    if said:
        note(said)
    return found


def _classes_of(config: Any, head: str) -> tuple[str, ...]:
    """Return the classes of a model with that head (`ForTokenClassification`); none if they have no names."""
    names = tuple(str(name) for _, name in sorted(config.id2label.items()))
    has_head = any(name.endswith(head) for name in config.architectures or ())
    return names if has_head and names != tuple(f"LABEL_{number}" for number in range(len(names))) else ()


def most_tokens(model: Any, tokenizer: Any, training: Training) -> int:
    """Return how many tokens an example may have: what the model takes, or less where the job says so."""
    takes = input_limit(model, tokenizer) or _UNLIMITED
    return min(takes, training.max_length or takes)


def _config(source: Source, labels: Labels) -> Any:
    names = {"id2label": dict(enumerate(labels.names)), "label2id": {n: i for i, n in enumerate(labels.names)}}
    kinds: dict[str, dict[str, Any]] = {
        "classes": {**names, "problem_type": "single_label_classification"},
        "several": {**names, "problem_type": "multi_label_classification"},
        "number": {"num_labels": 1, "problem_type": "regression"},
        "tags": names,
        "": {},
    }
    return load_config(source, **kinds[labels.kind])


def _say_new_weights(model: Any, info: Any, directory: Path, note: Callable[[str], None]) -> None:
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    mismatched = {entry[0] if isinstance(entry, tuple | list) else entry for entry in info["mismatched_keys"]}
    new = sorted(name for name in {*info["missing_keys"], *mismatched} & parameters if _POOLER not in name)
    body = f"{model.base_model_prefix}."
    lacking = [name for name in new if name.startswith(body)]
    if lacking:
        raise ModelError(
            "missing_weights",
            f"{directory} lacks weights of the model itself: {', '.join(lacking[:4])}. It is another architecture, or "
            "damaged.",
        )
    if new:
        why = "the base model's is of another size" if mismatched else "the base model brings none for this task"
        note(f"A new head was made ({', '.join(name.rpartition('.')[0] for name in new[:1])}): {why}.")


def _give_padding(model: Any, tokenizer: Any) -> None:
    """Have models without a padding token pad with the end of text: the attention mask hides it."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id


def _with_adapter(model: Any, training: Training) -> Any:
    from peft import LoraConfig, TaskType, get_peft_model

    kinds = {"ForSequenceClassification": TaskType.SEQ_CLS, "ForTokenClassification": TaskType.TOKEN_CLS}
    name = type(model).__name__
    kind = next((kind for ending, kind in kinds.items() if name.endswith(ending)), None)
    heads = [part for part, _ in model.named_children() if part != model.base_model_prefix]
    config = LoraConfig(
        task_type=kind,
        # A head that peft trains as a whole takes no additions beside that: it refuses those of taggers.
        exclude_modules=rf"({'|'.join(heads)})(\..*)?" if kind else None,
        r=training.lora_r,
        lora_alpha=training.lora_alpha,
        lora_dropout=training.lora_dropout,
        target_modules="all-linear",
    )
    return get_peft_model(model, config)
