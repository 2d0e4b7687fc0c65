"""Options and examples of a fine-tune job that do not go together: Trainer finds that out late, and says it in its own
words or with a traceback. The producer checks files, the worker data sets of the hub.
"""

from common.errors import UsageError
from common.training.labels import Labels
from common.training.options import TrainingOptions

#: Further arguments that do nothing, or fail, without an evaluation; and their values that ask for one.
_NEEDS_EVALUATION = {
    "eval_strategy": ("steps", "epoch"),
    "eval_on_start": (True,),
    "load_best_model_at_end": (True,),
    "save_strategy": ("best",),
}


def check_conflicts(training: TrainingOptions, labels: Labels | None, examples: int | None, *, evaluates: bool) -> None:
    """Check the options of a job against each other and against its examples.

    Args:
        training: the options.
        labels: what there is to learn; None where only the worker will know.
        examples: how many there are to learn from; None likewise.
        evaluates: whether there is a set to evaluate with.

    Raises:
        UsageError: some do not go together; says which, and what to do.
    """
    _check_evaluation(training, evaluates=evaluates)
    given = training.arguments
    smoothed = given.get("label_smoothing_factor")
    if smoothed and labels is not None and labels.kind in ("regression", "multi_label"):
        raise UsageError(
            f"-p label_smoothing_factor={smoothed} is for one label out of several classes; here is {labels.words}. "
            "Leave it out."
        )
    batch = training.batch_size * (training.gpus or 1)
    if given.get("dataloader_drop_last") and examples is not None and examples < batch:
        raise UsageError(
            f"-p dataloader_drop_last=true leaves nothing to learn from: {examples:,} examples do not fill a batch of "
            f"{batch:,}. Lower --batch-size, or leave it out."
        )


def _check_evaluation(training: TrainingOptions, *, evaluates: bool) -> None:
    given = training.arguments
    options = {"--early-stopping": training.early_stopping, "--metric-for-best": training.metric_for_best}
    wanted = [name for name, value in options.items() if value]
    if not evaluates:
        asking = [name for name, asks in _NEEDS_EVALUATION.items() if given.get(name) in asks]
        wanted += [f"-p {name}={_shown(given[name])}" for name in asking]
        if wanted:
            verb = "needs" if len(wanted) == 1 else "need"
            raise UsageError(f"{' and '.join(wanted)} {verb} something to evaluate: --eval or --eval-split.")
        return
    strategy = given.get("eval_strategy", "epoch")
    if wanted and strategy == "no":
        raise UsageError(f"{' and '.join(wanted)}: -p eval_strategy=no leaves no evaluation to go by. Leave it out.")
    saves = given.get("save_strategy", strategy)
    if given.get("load_best_model_at_end", True) and saves not in ("best", strategy):
        raise UsageError(
            f"-p save_strategy={saves}: to keep the best model, a checkpoint is written at each evaluation "
            f"({strategy}). Leave it out, or keep the last model with -p load_best_model_at_end=false."
        )


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
