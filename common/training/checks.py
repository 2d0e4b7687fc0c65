"""Checks of a fine-tune job: its options against its task, against each other, and against its examples.

The producer applies them to files before it submits anything, the worker to every job.
"""

from collections.abc import Sequence

from common.errors import UsageError
from common.suggestions import did_you_mean
from common.training.kinds import PAIR_TASKS, TASK_KINDS, Example
from common.training.labels import Labels
from common.training.losses import check_loss_fits, check_loss_options
from common.training.metrics import METRICS, known_metrics, metrics_of, unmeasured
from common.training.options import TrainingOptions

#: Further arguments that do nothing, or fail, without an evaluation, and the values that ask for one.
_NEEDS_EVALUATION = {
    "eval_strategy": ("steps", "epoch"),
    "eval_on_start": (True,),
    "load_best_model_at_end": (True,),
    "save_strategy": ("best",),
}
#: Tasks that learn something else than one text.
_NOT_ONE_TEXT = {"token-classification": "words", **dict.fromkeys(PAIR_TASKS, "several texts")}
#: Tasks whose model is more than its base with adapters.
_WHOLE_MODELS = {
    **dict.fromkeys(("text-classification", "token-classification"), "has a head that is trained in full"),
    **dict.fromkeys(PAIR_TASKS, "is stored as a whole model of sentence-transformers"),
}


def check_options(task: str, training: TrainingOptions, *, evaluates: bool) -> None:
    """Check options against the task and each other; Trainer would find a conflict late.

    Args:
        task: a task that can be fine-tuned.
        training: the options.
        evaluates: whether there is an evaluation set.

    Raises:
        UsageError: Options conflict; says which, and what to do.
    """
    if training.template and task in _NOT_ONE_TEXT:
        raise UsageError(f"--template makes a text, and {task} learns {_NOT_ONE_TEXT[task]}. Leave it out.")
    if not training.merge and task in _WHOLE_MODELS:
        raise UsageError(
            f"--no-merge stores the adapters alone, and a model for {task} {_WHOLE_MODELS[task]}. Leave it out."
        )
    check_loss_options(task, training)
    _check_evaluation(training, evaluates=evaluates)
    _check_metric(training, task, {name for kind in TASK_KINDS[task] for name in METRICS[kind]})


def check_fit(
    task: str, training: TrainingOptions, labels: Labels, train: Sequence[Example], evaluation: Sequence[Example]
) -> None:
    """Check options, of which `check_options` has found nothing wrong, against the examples.

    Raises:
        UsageError: The examples cannot be learned from, or evaluated, with them; says what to do.
    """
    arguments = training.arguments
    described = f"{task} with {labels.description}" if labels.description else task
    _check_metric(training, described, set(known_metrics(labels)))
    _check_measured(training, labels, evaluation)
    smoothed = arguments.get("label_smoothing_factor")
    if smoothed and labels.kind in ("regression", "multi_label"):
        raise UsageError(
            f"-p label_smoothing_factor={smoothed} is for one label out of several classes; here is "
            f"{labels.description}. Leave it out."
        )
    batch = training.batch_size * (training.gpus or 1)
    if arguments.get("dataloader_drop_last") and len(train) < batch:
        raise UsageError(
            f"-p dataloader_drop_last=true leaves nothing to learn from: {len(train):,} examples do not fill a batch "
            f"of {batch:,}. Lower --batch-size, or leave it out."
        )
    if task in PAIR_TASKS:
        check_loss_fits(labels.kind, training, train, evaluation)


def _check_metric(training: TrainingOptions, measured_for: str, known: set[str]) -> None:
    metric = training.metric_for_best
    if metric is not None and metric.removeprefix("eval_") not in known:
        raise UsageError(f"--metric-for-best {metric}: not measured for {measured_for}. {did_you_mean(metric, known)}")


def _check_measured(training: TrainingOptions, labels: Labels, evaluation: Sequence[Example]) -> None:
    """Check that the evaluation set has a value for the metric: the first checkpoint would find out."""
    lacking, why = unmeasured(labels, evaluation)
    if (training.metric_for_best or "").removeprefix("eval_") in lacking:
        raise UsageError(
            f"--metric-for-best {training.metric_for_best}: not measured, because {why}. Leave it out, or try "
            f"{metrics_of(labels, evaluation)[0]}."
        )


def _check_evaluation(training: TrainingOptions, *, evaluates: bool) -> None:
    arguments = training.arguments
    options = {"--early-stopping": training.early_stopping, "--metric-for-best": training.metric_for_best}
    wanted = [name for name, value in options.items() if value]
    if not evaluates:
        dependent = [name for name, values in _NEEDS_EVALUATION.items() if arguments.get(name) in values]
        wanted += [f"-p {name}={_shown(arguments[name])}" for name in dependent]
        if wanted:
            verb = "needs" if len(wanted) == 1 else "need"
            raise UsageError(f"{' and '.join(wanted)} {verb} something to evaluate: --eval or --eval-split.")
        return
    strategy = arguments.get("eval_strategy", "epoch")
    if wanted and strategy == "no":
        raise UsageError(f"{' and '.join(wanted)}: -p eval_strategy=no leaves no evaluation to go by. Leave it out.")
    saves = arguments.get("save_strategy", strategy)
    if arguments.get("load_best_model_at_end", True) and saves not in ("best", strategy):
        raise UsageError(
            f"-p save_strategy={saves}: to keep the best model, a checkpoint is written at each evaluation "
            f"({strategy}). Leave it out, or keep the last model with -p load_best_model_at_end=false."
        )


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
