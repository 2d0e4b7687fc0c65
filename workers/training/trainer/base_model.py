"""Base model: loads the weights to train, with a head sized for the labels, and adds LoRA adapters."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import Path
from typing import Any

from common.errors import ModelError
from common.training.labels import Labels, align_labels
from common.training.options import TrainingOptions
from workers.inference.core.device_errors import is_out_of_memory
from workers.inference.loading.adapters import merge_adapter, supplied_weights
from workers.inference.loading.loader import (
    LOAD_ERRORS,
    ModelSource,
    check_complete,
    check_own_code,
    load_config,
    load_tokenizer,
)
from workers.inference.text.truncation import input_token_limit
from workers.models.file_references import CONFIG

#: Weights that a head does not need or that are computed: not worth a note.
_POOLER = "pooler"
#: Maximum number of tokens of a text if there is no other limit.
_UNLIMITED = 2048


def load_base_model(
    auto_class: str,
    source: ModelSource,
    labels: Labels,
    options: TrainingOptions,
    note: Callable[[str], None],
    *,
    as_it_is: bool = False,
) -> tuple[Any, Any]:
    """Return the model of `source`, in float32 and with a head for `labels`, and its tokenizer.

    Args:
        auto_class: name of transformers' class with the task's head.
        source: the base model's directory, and how it may be loaded.
        labels: the classes of the head.
        options: whether and how to add LoRA adapters.
        note: called with remarks on newly initialized weights.
        as_it_is: the trainer compares with the model as it is: no weight may be new, and the trainer adds the adapters.

    Raises:
        ModelError: the model cannot be loaded, or lacks weights beyond its head.
    """
    import transformers

    tokenizer = load_tokenizer(source)
    check_own_code(source, [CONFIG], auto_class)
    if source.adapter and not options.merge:
        raise ModelError(
            "bad_param",
            "--no-merge: the base model is an adapter, and adapters of adapters cannot be loaded. Leave it out.",
        )
    supplied = supplied_weights(source.adapter) if source.adapter else {}
    try:
        model, info = getattr(transformers, auto_class).from_pretrained(
            source.directory,
            config=_config(source, labels),
            dtype="float32",
            local_files_only=True,
            use_safetensors=None if source.options.allow_pickle else True,
            trust_remote_code=source.options.allow_remote_code,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except LOAD_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            "not_a_model", f"The model in {source.directory} cannot be loaded as {auto_class}: {error}"[:1000]
        ) from error
    new = check_new_weights(model, info, source.directory, note, supplied.keys())
    if as_it_is or not options.merge:
        check_complete(model, sorted(new), source.directory)
    if source.adapter:
        model = merge_adapter(model, source.adapter)
    set_padding(model, tokenizer)
    if options.lora and not as_it_is:
        # An existing head is small too: it is trained in full, like without LoRA.
        model = add_lora(model, options, new | (head_of(model) if labels.are_given else set()))
    return model, tokenizer


def match_base_labels(auto_class: str, source: ModelSource, labels: Labels, note: Callable[[str], None]) -> Labels:
    """Return the labels in the order of the base model's own head, where it has the same classes.

    Raises:
        ModelError: as `load_config`.
    """
    known = _classes_of(load_config(source), auto_class.removeprefix("AutoModel"))
    if known == _placeholders(len(known)) and not set(labels.names) <= set(known):
        return labels  # the classes of its head have only placeholder names
    aligned, remark = align_labels(labels, known)
    if remark:
        note(remark)
    return aligned


def _classes_of(config: Any, head: str) -> tuple[str, ...]:
    """Return the classes of a model with this head (`ForTokenClassification`), in order; none for another model."""
    has_head = any(name.endswith(head) for name in config.architectures or ())
    return tuple(str(name) for _, name in sorted(config.id2label.items())) if has_head else ()


def _placeholders(classes: int) -> tuple[str, ...]:
    """Return the names that transformers gives to unnamed classes."""
    return tuple(f"LABEL_{number}" for number in range(classes))


def max_example_tokens(model: Any, tokenizer: Any, options: TrainingOptions) -> int:
    """Return how many tokens an example may have: what the model takes, or the job's lower `max_length`."""
    limit = input_token_limit(model, tokenizer) or _UNLIMITED
    return min(limit, options.max_length or limit)


def _config(source: ModelSource, labels: Labels) -> Any:
    names = {"id2label": dict(enumerate(labels.names)), "label2id": {n: i for i, n in enumerate(labels.names)}}
    kinds: dict[str, dict[str, Any]] = {
        "single_label": {**names, "problem_type": "single_label_classification"},
        "multi_label": {**names, "problem_type": "multi_label_classification"},
        "regression": {"num_labels": 1, "problem_type": "regression"},
        "tags": names,
    }
    return load_config(source, **kinds.get(labels.kind, {}))


def _new_weights(model: Any, info: Any) -> set[str]:
    """Return the names of the parameters that the base model did not bring, or not in that size."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    mismatched = {entry[0] if isinstance(entry, tuple | list) else entry for entry in info["mismatched_keys"]}
    return {*info["missing_keys"], *mismatched} & parameters


def head_of(model: Any) -> set[str]:
    """Return the names of the parameters outside the body."""
    return {name for name, _ in model.named_parameters() if not name.startswith(f"{model.base_model_prefix}.")}


def check_new_weights(
    model: Any,
    info: Mapping[str, Any],
    directory: Path,
    note: Callable[[str], None],
    supplied: Set[str] = frozenset(),
) -> set[str]:
    """Return the names of the weights that a base model did not bring, which only its head may lack.

    Args:
        model: was loaded from it.
        info: what its loading found.
        directory: of the base model.
        note: called with a remark on a new head.
        supplied: names of weights that an adapter brings.

    Raises:
        ModelError: `missing_weights`, the model itself lacks some.
    """
    weights = _new_weights(model, info) - supplied
    new = sorted(name for name in weights if _POOLER not in name)
    body = f"{model.base_model_prefix}."
    missing = [name for name in new if name.startswith(body)]
    if missing:
        raise ModelError(
            "missing_weights",
            f"{directory} lacks weights of the model itself: {', '.join(missing[:4])}. Its architecture differs, or it "
            "is damaged.",
        )
    if new:
        why = (
            "the base model's has another size" if info["mismatched_keys"] else "the base model has none for this task"
        )
        note(f"The head ({new[0].rpartition('.')[0]}) is newly initialized: {why}.")
    return weights


def set_padding(model: Any, tokenizer: Any) -> None:
    """Pad with the end-of-text token where there is no padding token: the attention mask hides it."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id


def add_lora(model: Any, options: TrainingOptions, whole: Set[str]) -> Any:
    """Return the model with LoRA adapters in its linear layers, except for modules that are trained in full.

    Not by peft's `modules_to_save`, which matches every module whose name has the same ending: for a head of the
    layers `dense` and `classifier`, all layers of these names in the model.

    Args:
        model: is modified.
        options: rank, alpha and dropout.
        whole: names of parameters, such as a new head's, whose modules are trained in full.

    Raises:
        ModelError: `bad_param`, peft finds no layer to adapt, or a module cannot be trained in full.
    """
    from peft import get_peft_model

    modules = _outermost({name.rpartition(".")[0] for name in whole})
    _check_separate(model, modules)
    config = lora_config(options, rf"({'|'.join(map(re.escape, modules))})(\..*)?" if modules else None)
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise lora_error(error) from error
    for name in modules:
        _train_in_full(model, name, adapted.active_adapter)
    return adapted


def lora_config(options: TrainingOptions, exclude: str | None = None) -> Any:
    """Return peft's configuration of adapters in all linear layers, but for modules whose names match `exclude`."""
    from peft import LoraConfig

    return LoraConfig(
        exclude_modules=exclude,
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules="all-linear",
    )


def lora_error(error: ValueError) -> ModelError:
    """Return the error of a model to which peft can add no adapters."""
    advice = " Try --lora-dropout 0." if "dropout" in str(error) else ""
    return ModelError("bad_param", f"--lora does not work with this model: {error}"[:900] + advice)


def _outermost(modules: Set[str]) -> list[str]:
    """Return the modules that are not inside another of them."""
    return sorted(name for name in modules if not any(name.startswith(f"{other}.") for other in modules))


def _check_separate(model: Any, modules: Iterable[str]) -> None:
    """Check that no module shares its weights with another."""
    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for name in modules:
        if not name or any(owners[id(parameter)] > 1 for parameter in model.get_submodule(name).parameters()):
            raise ModelError(
                "bad_param",
                f"--lora cannot train the new weights of {name or type(model).__name__}, which are tied to others. "
                "Leave it out, or start from a model that has these weights.",
            )


def _train_in_full(model: Any, name: str, adapter: str) -> None:
    from peft.utils import ModulesToSaveWrapper

    parent, _, own = name.rpartition(".")
    holder = model.get_submodule(parent)
    wrapped = ModulesToSaveWrapper(getattr(holder, own), adapter)
    wrapped.set_adapter(adapter)
    setattr(holder, own, wrapped)
