"""A run for `embedding` or `rerank`: from its examples and base model to a trainer of sentence-transformers."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.errors import ModelError
from common.training.losses import loss_of, uses_other_examples
from common.training.options import TrainingOptions
from workers.inference.loading.loader import ModelSource
from workers.training.run_config import TrainingRunConfig
from workers.training.trainer.arguments import best_metric, build_training_arguments
from workers.training.trainer.control_socket import ControlSocket
from workers.training.trainer.data import Examples
from workers.training.trainer.encoders.datasets import texts_of, to_columns, to_dataset
from workers.training.trainer.encoders.models import Encoder, load_encoder
from workers.training.trainer.prepared_run import PreparedRun, run_callbacks


def prepare_encoder(config: TrainingRunConfig, control: ControlSocket, examples: Examples) -> PreparedRun:
    """Return the run of a job.

    Raises:
        WorkerError: `missing_library`, sentence-transformers is not installed.
        ModelError: the model cannot be loaded or trained as the job says.
    """
    task, kind = config.job.task, examples.labels.kind
    source = ModelSource(Path(config.base_model), config.load)
    encoder = load_encoder(task, source, config.options, control.note)
    if longer := encoder.count_longer(texts_of(kind, (*examples.train, *examples.eval))):
        verb = "text is" if longer == 1 else "texts are"
        control.note(f"{longer:,} {verb} longer than {encoder.max_tokens:,} tokens, and cut.")
    return PreparedRun(_build_trainer(config, control, encoder, examples), save=encoder.save)


def _build_trainer(config: TrainingRunConfig, control: ControlSocket, encoder: Encoder, examples: Examples) -> Any:
    from workers.training.trainer.encoders.evaluators import make_evaluator
    from workers.training.trainer.encoders.trainers import TRAINERS

    options, kind, model, trainer = config.options, examples.labels.kind, encoder.model, TRAINERS[config.job.task]
    evaluates, name = bool(examples.eval), loss_of(kind, options)
    columns = to_columns(kind, name, examples.train)
    loss = _make_loss(model, name, options, control.note)
    defaults = {
        **trainer.defaults,
        "batch_sampler": "no_duplicates" if uses_other_examples(name) else "batch_sampler",
        **_inputs_as_evaluated(model, kind, list(columns)),
    }
    arguments = build_training_arguments(
        config, replace(trainer, defaults=defaults), best_metric(examples.labels, examples.eval, options)
    )
    _check_batches(arguments, len(next(iter(columns.values()))))
    batch, dims = arguments.per_device_eval_batch_size, _lower_dims(model, options)
    return trainer.trainer(
        note=control.note,
        model=model,
        args=arguments,
        train_dataset=to_dataset(columns),
        eval_dataset=to_dataset(to_columns(kind, name, examples.eval)) if evaluates else None,
        loss=loss,
        evaluator=make_evaluator(examples.labels, examples.eval, batch, dims) if evaluates else None,
        callbacks=run_callbacks(config, control),
    )


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
    if width is not None and (above := [dim for dim in dims if dim > width]):
        raise ModelError(
            "bad_param",
            f"--matryoshka-dims {_listed(dims)}: the model's vectors have {width} numbers. Leave out {_listed(above)}.",
        )
    if width not in dims:
        note(f"The whole vectors of {width} numbers are not among --matryoshka-dims, so they are not trained as such.")
    return of_vectors.MatryoshkaLoss(model, loss, list(dims))


def _listed(dims: Sequence[int]) -> str:
    return ",".join(map(str, dims))


def _width(model: Any) -> int | None:
    found: int | None = model.get_embedding_dimension()
    return found


def _lower_dims(model: Any, options: TrainingOptions) -> list[int]:
    dims = options.matryoshka_dims
    return sorted({*dims} - {_width(model)}, reverse=True) if dims else []


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
