"""The model to train: its weights from a directory, its head made to measure, what had to be made up said once."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Set
from pathlib import Path
from typing import Any

from common.errors import ModelError
from common.training.labels import Labels, align_labels
from common.training.options import TrainingOptions
from workers.inference.core.batches import is_out_of_memory
from workers.inference.models.loader import LOAD_ERRORS, ModelSource, check_own_code, load_config, load_tokenizer
from workers.inference.text.truncation import input_token_limit
from workers.models.model_references import CONFIG

#: Weights that a head can do without or that are computed: no word about them.
_POOLER = "pooler"
#: How many tokens texts may have where nothing else limits them.
_UNLIMITED = 2048


def load_base_model(
    auto_class: str, source: ModelSource, labels: Labels, training: TrainingOptions, note: Callable[[str], None]
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
    check_own_code(source, [CONFIG], auto_class)
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
    new = _new_weights(model, info)
    _say_new_weights(model, new, info, source.directory, note)
    _give_padding(model, tokenizer)
    if training.lora:
        # A head that is there already is small as well: it is trained as a whole, as without LoRA.
        model = add_lora(model, training, new | (_head_of(model) if labels.kind else set()))
    return model, tokenizer


def match_base_labels(auto_class: str, source: ModelSource, labels: Labels, note: Callable[[str], None]) -> Labels:
    """Return the labels in the order in which the base model's own head has them, where it tells the same apart.

    Raises:
        ModelError: as `load_config`.
    """
    known = _classes_of(load_config(source), auto_class.removeprefix("AutoModel"))
    if known == _placeholders(len(known)) and not set(labels.names) <= set(known):
        return labels  # its classes have no names, which could be told from those of the examples
    found, said = align_labels(labels, known)
    if said:
        note(said)
    return found


def _classes_of(config: Any, head: str) -> tuple[str, ...]:
    """Return the classes of a model with that head (`ForTokenClassification`), in their order; else none."""
    has_head = any(name.endswith(head) for name in config.architectures or ())
    return tuple(str(name) for _, name in sorted(config.id2label.items())) if has_head else ()


def _placeholders(classes: int) -> tuple[str, ...]:
    """Return the names that transformers gives to classes without any."""
    return tuple(f"LABEL_{number}" for number in range(classes))


def max_example_tokens(model: Any, tokenizer: Any, training: TrainingOptions) -> int:
    """Return how many tokens an example may have: what the model takes, or less where the job says so."""
    takes = input_token_limit(model, tokenizer) or _UNLIMITED
    return min(takes, training.max_length or takes)


def _config(source: ModelSource, labels: Labels) -> Any:
    names = {"id2label": dict(enumerate(labels.names)), "label2id": {n: i for i, n in enumerate(labels.names)}}
    kinds: dict[str, dict[str, Any]] = {
        "classes": {**names, "problem_type": "single_label_classification"},
        "several": {**names, "problem_type": "multi_label_classification"},
        "number": {"num_labels": 1, "problem_type": "regression"},
        "tags": names,
        "": {},
    }
    return load_config(source, **kinds[labels.kind])


def _new_weights(model: Any, info: Any) -> set[str]:
    """Return the names of the parameters that the base model did not bring, or not in that size."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    mismatched = {entry[0] if isinstance(entry, tuple | list) else entry for entry in info["mismatched_keys"]}
    return {*info["missing_keys"], *mismatched} & parameters


def _head_of(model: Any) -> set[str]:
    """Return the names of the parameters outside the body."""
    return {name for name, _ in model.named_parameters() if not name.startswith(f"{model.base_model_prefix}.")}


def _say_new_weights(model: Any, weights: Set[str], info: Any, directory: Path, note: Callable[[str], None]) -> None:
    new = sorted(name for name in weights if _POOLER not in name)
    body = f"{model.base_model_prefix}."
    lacking = [name for name in new if name.startswith(body)]
    if lacking:
        raise ModelError(
            "missing_weights",
            f"{directory} lacks weights of the model itself: {', '.join(lacking[:4])}. It is another architecture, or "
            "damaged.",
        )
    if new:
        why = (
            "the base model's is of another size"
            if info["mismatched_keys"]
            else "the base model brings none for this task"
        )
        note(f"A new head was made ({', '.join(name.rpartition('.')[0] for name in new[:1])}): {why}.")


def _give_padding(model: Any, tokenizer: Any) -> None:
    """Have models without a padding token pad with the end of text: the attention mask hides it."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id


def add_lora(model: Any, training: TrainingOptions, whole: Set[str]) -> Any:
    """Return the model with LoRA's additions to its linear layers, and with modules that are trained as a whole.

    Not by peft's `modules_to_save`: that takes every module whose name ends alike, and of a head of two layers called
    `dense` and `classifier` it takes all that a model has of that name.

    Args:
        model: is changed.
        training: rank, alpha and dropout.
        whole: names of parameters, as of a new head; the modules that hold them get no addition.

    Raises:
        ModelError: `bad_param`, peft finds nothing to add to, or one of them cannot be trained beside the additions.
    """
    from peft import LoraConfig, get_peft_model

    modules = _outermost({name.rpartition(".")[0] for name in whole})
    _check_separate(model, modules)
    config = LoraConfig(
        exclude_modules=rf"({'|'.join(map(re.escape, modules))})(\..*)?" if modules else None,
        r=training.lora_r,
        lora_alpha=training.lora_alpha,
        lora_dropout=training.lora_dropout,
        target_modules="all-linear",
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        advice = " Try --lora-dropout 0." if "dropout" in str(error) else ""
        raise ModelError("bad_param", f"--lora does not go with this model: {error}"[:900] + advice) from error
    for name in modules:
        _train_as_a_whole(model, name, adapted.active_adapter)
    return adapted


def _outermost(modules: Set[str]) -> list[str]:
    """Return the modules that are in no other of them."""
    return sorted(name for name in modules if not any(name.startswith(f"{other}.") for other in modules))


def _check_separate(model: Any, modules: Iterable[str]) -> None:
    """Check that each module can have weights of its own."""
    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for name in modules:
        if not name or any(owners[id(parameter)] > 1 for parameter in model.get_submodule(name).parameters()):
            raise ModelError(
                "bad_param",
                f"--lora cannot train the new weights of {name or type(model).__name__}, which are tied to others. "
                "Leave it out, or begin with a model that has them.",
            )


def _train_as_a_whole(model: Any, name: str, adapter: str) -> None:
    from peft.utils import ModulesToSaveWrapper

    parent, _, own = name.rpartition(".")
    holder = model.get_submodule(parent)
    wrapped = ModulesToSaveWrapper(getattr(holder, own), adapter)
    wrapped.set_adapter(adapter)
    setattr(holder, own, wrapped)
