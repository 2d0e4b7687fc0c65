"""Training run: from a run configuration to a finished model directory, with a `Trainer` of transformers' kind.

Tasks whose examples are pairs of texts have a run of their own (`workers.training.trainer.encoders`).
"""

from transformers import PrinterCallback, set_seed

from common.errors import ModelError, UsageError
from common.records import Json
from common.training.checks import check_fit, check_options
from common.training.kinds import PAIR_TASKS
from common.training.metrics import unmeasured
from workers.training.run_config import TrainingRunConfig
from workers.training.trainer.control_socket import ControlSocket
from workers.training.trainer.data import Examples
from workers.training.trainer.evaluation import evaluate
from workers.training.trainer.model_card import summarize_run, write_model_card
from workers.training.trainer.prepared_run import PreparedRun
from workers.training.trainer.recipe_run import prepare_by_recipe
from workers.training.trainer.run_logs import continue_logs, keep_logs


def train(config: TrainingRunConfig, control: ControlSocket) -> dict[str, Json]:
    """Train, leave the finished model in `config.model_dir`, and return the summary of the run.

    Raises:
        ModelError: the job cannot be done.
        WorkerError: this worker cannot do it.
        UsageError: its examples cannot be learned from.
        TrainingStopped: the worker is stopping; a checkpoint is written.
    """
    control.stage("reading the examples")
    examples = Examples(config)
    for text in examples.notes:
        control.note(text)
    _check(config, examples)
    lacking, why = unmeasured(examples.labels, examples.eval)
    if lacking:
        control.note(f"Not measured: {', '.join(lacking)}, because {why}.")
    control.stage(f"loading {config.model_info['model']}")
    set_seed(config.options.seed)
    run = _prepare(config, control, examples)
    run.trainer.remove_callback(PrinterCallback)
    is_first = run.trainer.is_world_process_zero()
    control.stage("training")
    if is_first:
        continue_logs(config.checkpoint, config.work_dir)
    run.trainer.train(resume_from_checkpoint=config.checkpoint)
    if examples.eval:
        control.stage("evaluating")
    result = summarize_run(config, run.trainer, examples, evaluate(run.trainer, examples), control.notes)
    control.stage("saving the model")
    if is_first:
        run.save(config.model_dir)
        keep_logs(config.work_dir, config.model_dir)
        write_model_card(config.model_dir, result)
    run.trainer.accelerator.wait_for_everyone()
    return result


def _check(config: TrainingRunConfig, examples: Examples) -> None:
    task, options = config.job.task, config.options
    try:
        check_options(task, options, evaluates=bool(examples.eval))
        check_fit(task, options, examples.labels, examples.train, examples.eval)
    except UsageError as error:
        raise ModelError("bad_param", str(error)) from error


def _prepare(config: TrainingRunConfig, control: ControlSocket, examples: Examples) -> PreparedRun:
    if config.job.task not in PAIR_TASKS:
        return prepare_by_recipe(config, control, examples)
    from workers.training.trainer.encoders.run import prepare_encoder

    return prepare_encoder(config, control, examples)
