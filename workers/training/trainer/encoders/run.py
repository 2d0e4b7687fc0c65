"""A run for `embedding` or `rerank`: from its examples and base model to a trainer of sentence-transformers."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PrinterCallback

from common.errors import ModelError, UsageError
from common.training.losses import check_loss_fits, check_loss_options, loss_of, uses_other_examples
from common.training.options import TrainingOptions
from workers.inference.loading.loader import ModelSource
from workers.training.run_config import TrainingRunConfig
from workers.training.trainer.arguments import build_training_arguments
from workers.training.trainer.control_socket import ControlSocket
from workers.training.trainer.data import Examples
from workers.training.trainer.encoders.datasets import texts_of, to_columns, to_dataset
from workers.training.trainer.encoders.models import Encoder, load_encoder
from workers.training.trainer.evaluation import Evaluation, measure
from workers.training.trainer.prepared_run import PreparedRun, run_callbacks


def prepare_encoder(config: TrainingRunConfig, control: ControlSocket, examples: Examples) -> PreparedRun:
    """Return the run of a job.

    Raises:
        WorkerError: `missing_library`, sentence-transformers is not installed.
        ModelError: the model cannot be loaded or trained as the job says.
    """
    task, kind = config.job.task, examples.labels.kind
    try:
        check_loss_options(task, config.options)
        check_loss_fits(kind, config.options, (*examples.train, *examples.eval))
    except UsageError as error:
        raise ModelError("bad_param", str(error)) from error
    source = ModelSource(Path(config.base_model), config.load)
    encoder = load_encoder(task, source, config.options, control.note)
    if longer := encoder.count_longer(texts_of(kind, (*examples.train, *examples.eval))):
        verb = "text is" if longer == 1 else "texts are"
        control.note(f"{longer:,} {verb} longer than {encoder.max_tokens:,} tokens, and cut.")
    trainer = _build_trainer(config, control, encoder, examples)
    return PreparedRun(
        trainer,
        evaluate=partial(measure, trainer) if examples.eval else Evaluation,
        save=encoder.save,
    )


def _build_trainer(config: TrainingRunConfig, control: ControlSocket, encoder: Encoder, examples: Examples) -> Any:
    from sentence_transformers import CrossEncoderTrainingArguments, SentenceTransformerTrainingArguments

    from workers.training.trainer.encoders.evaluators import make_evaluator
    from workers.training.trainer.encoders.trainers import EmbeddingTrainer, RerankTrainer

    options, kind, model = config.options, examples.labels.kind, encoder.model
    embeds, evaluates, name = config.job.task == "embedding", bool(examples.eval), loss_of(kind, config.options)
    columns = to_columns(kind, name, examples.train)
    loss = _make_loss(model, name, options, control.note)
    arguments = build_training_arguments(
        config,
        evaluates=evaluates,
        metric=_best_metric(kind, examples, options) if evaluates else None,
        kind=SentenceTransformerTrainingArguments if embeds else CrossEncoderTrainingArguments,
        defaults={
            "train_sampling_strategy": "random",  # by length it would be for Trainer's own batches
            "batch_sampler": "no_duplicates" if uses_other_examples(name) else "batch_sampler",
            # With several processes, torch's search for unused weights fails on what a CrossEncoder returns.
            "ddp_find_unused_parameters": None if embeds else False,
            **_inputs_as_evaluated(model, kind, list(columns)),
        },
    )
    _check_batches(arguments, len(next(iter(columns.values()))))
    dims = sorted(set(options.matryoshka_dims or ()) - {_width(model)}, reverse=True) if embeds else ()
    trainer = (EmbeddingTrainer if embeds else RerankTrainer)(
        note=control.note,
        model=model,
        args=arguments,
        train_dataset=to_dataset(columns),
        eval_dataset=to_dataset(to_columns(kind, name, examples.eval)) if evaluates else None,
        loss=loss,
        evaluator=make_evaluator(kind, examples.eval, arguments.per_device_eval_batch_size, dims)
        if evaluates
        else None,
        callbacks=run_callbacks(config, control),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _make_loss(model: Any, name: str, options: TrainingOptions, note: Callable[[str], None]) -> Any:
    from sentence_transformers.cross_encoder import losses as of_pairs
    from sentence_transformers.sentence_transformer import losses as of_vectors

    dims = options.matryoshka_dims
    if hasattr(of_pairs, name) and not hasattr(model, "similarity"):
        return getattr(of_pairs, name)(model)
    loss = getattr(of_vectors, name)(model)
    if dims is None:
        return loss
    width = _width(model)
    if width is not None and max(dims) > width:
        raise ModelError(
            "bad_param",
            f"--matryoshka-dims {','.join(map(str, dims))}: the model's vectors have {width} numbers. Leave out more.",
        )
    if width not in dims:
        note(f"The whole vectors of {width} numbers are not among --matryoshka-dims, so they are not trained as such.")
    return of_vectors.MatryoshkaLoss(model, loss, list(dims))


def _width(model: Any) -> int | None:
    found: int | None = model.get_embedding_dimension()
    return found


def _best_metric(kind: str, examples: Examples, options: TrainingOptions) -> str:
    from workers.training.trainer.encoders.evaluators import first_metric

    wanted = options.metric_for_best
    if wanted is None:
        return first_metric(kind, examples.eval)
    name = wanted.removeprefix("eval_")
    if name not in examples.labels.metrics:
        raise ModelError("bad_param", f"--metric-for-best {wanted}: measured are {', '.join(examples.labels.metrics)}.")
    return name


def _inputs_as_evaluated(model: Any, kind: str, columns: Sequence[str]) -> dict[str, Any]:
    """Return the prompts and the routes of the columns, which the evaluators take from the model themselves.

    A first text is a query and the others are documents, except for scored pairs, whose texts are alike.
    """
    default = model.prompts.get(model.default_prompt_name) or None
    if "relevance" in kind:
        return {"prompts": default}
    texts = [name for name in columns if name != "score"]
    alike = kind == "scored_pairs"
    tasks = {name: "query" if number == 0 and not alike else "document" for number, name in enumerate(texts)}
    prompts = {name: default if alike else model.prompts.get(task) for name, task in tasks.items()}
    routes = tasks if getattr(model[0], "sub_modules", ()) else {}
    return {"prompts": {name: text for name, text in prompts.items() if text} or None, "router_mapping": routes}


def _check_batches(arguments: Any, rows: int) -> None:
    """Check that there is a whole batch, where others are left out: with several processes."""
    batch = arguments.per_device_train_batch_size * arguments.world_size
    if arguments.dataloader_drop_last and rows < batch:
        raise ModelError(
            "bad_param",
            f"{rows:,} examples do not fill a batch of {batch:,}, and a batch that is not full is left out. Lower "
            "--batch-size or --gpus.",
        )
