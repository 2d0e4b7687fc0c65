"""From the options of `finetune` to a job: everything checked that can be checked before any work, then submitted."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from common.errors import UsageError
from common.jobs import TRAIN, JobSpec, new_job_id, truncate_names
from common.models.references import check_revision
from common.params import parse_params
from common.payloads.codec import encode_records
from common.payloads.job_payloads import JobPayloads
from common.records import Json, Record
from common.settings import Settings, load_settings
from common.suggestions import did_you_mean
from common.tasks import ALIASES
from common.training.conflicts import check_conflicts
from common.training.labels import check_metric
from common.training.options import HUB_PREFIX, LABEL_KINDS, TrainingOptions, check
from common.training.trainer_arguments import FIELDS
from producer.finetune.training_data import CHUNK_RECORDS, ExampleSet, read_examples
from producer.model_check import check_model
from producer.queue_connection import QueueConnection
from producer.submit.chunking import ChunkPlan, cut_chunks
from producer.submit.plan import check_spec
from producer.submit.upload import rollback_on_error


@dataclass(frozen=True, slots=True)
class FinetunePlan:
    """What `finetune` is about to do."""

    settings: Settings
    spec: JobSpec
    examples: ExampleSet
    wait: bool


def make_finetune_plan(  # noqa: PLR0913 - what does not go into `Training` as it is
    inputs: Sequence[str],
    *,
    task: str,
    model: str,
    revision: str | None = None,
    evaluation: str | None = None,
    eval_split: float | None = None,
    params: Sequence[str] = (),
    wait: bool = False,
    name: str | None = None,
    labels: Mapping[str, str] | None = None,
    priority: str = "normal",
    format_: str | None = None,
    quoting: str | None = None,
    **options: Any,
) -> FinetunePlan:
    """Return the plan for these options of `finetune`.

    Raises:
        UsageError: something is wrong with them, or with the examples.
    """
    settings, task = load_settings(), find_trainable(task)
    training = _training(inputs, evaluation, eval_split, parse_params(params, FIELDS), options)
    evaluates = evaluation is not None or eval_split is not None
    check_conflicts(training, None, None, evaluates=evaluates)
    spec = JobSpec(
        id=new_job_id(),
        task=task,
        model=check_model(model, settings),
        revision=check_revision(revision),
        queue=TRAIN,
        priority=priority,
        name=name,
        labels=dict(labels or {}),
        inputs=truncate_names((*inputs, *([evaluation] if evaluation else []))),
        created_at=time.time(),
        store=settings.store_url or None,
        training=training.encode(),
    )
    check_spec(spec)
    examples = read_examples(task, inputs, evaluation, training, eval_split, settings, format_, quoting)
    if examples.labels is not None:
        check_conflicts(training, examples.labels, len(examples.train), evaluates=evaluates)
    if training.metric_for_best:
        check_metric(task, examples.labels, training.metric_for_best)
    if examples.labels is not None:
        spec = replace(spec, training=replace(training, labels=examples.labels.encode()).encode())
    return FinetunePlan(settings, spec, examples, wait or settings.embedded)


def find_trainable(name: str) -> str:
    """Return the task of that name or alias, if it can be fine-tuned.

    Raises:
        UsageError: it cannot.
    """
    task = ALIASES.get(name, name)
    if task not in LABEL_KINDS:
        raise UsageError(f"--task {name}: it cannot be fine-tuned. {did_you_mean(name, LABEL_KINDS)}")
    return task


def _training(
    inputs: Sequence[str],
    evaluation: str | None,
    eval_split: float | None,
    params: Mapping[str, Json],
    options: Mapping[str, Any],
) -> TrainingOptions:
    hubs = [name for name in inputs if name.startswith(HUB_PREFIX)]
    if hubs and len(inputs) > 1:
        raise UsageError(f"{hubs[0]} cannot be joined with other inputs; name one data set of the hub alone.")
    if evaluation is not None and eval_split is not None:
        raise UsageError("--eval and --eval-split: give one of them.")
    training = TrainingOptions(
        **options,
        arguments=params,
        train_source=hubs[0] if hubs else None,
        eval_source=evaluation if evaluation and evaluation.startswith(HUB_PREFIX) else None,
        eval_split=eval_split,
    )
    check(training)
    return training


def submit_finetune(connection: QueueConnection, plan: FinetunePlan) -> None:
    """Write the examples and the one chunk that refers to them, accept the job, and send its ticket.

    Raises:
        StoreUnavailable: Redis is away or full.
        NotSubmitting: the job was given up or cancelled meanwhile.
    """
    spec = plan.spec
    payloads = connection.store.payloads(spec)
    with connection.errors():
        connection.store.create(spec)
    with rollback_on_error(connection, spec.id):
        parts = {
            "train": _write_part(connection, payloads, "train", plan.examples.train),
            "eval": _write_part(connection, payloads, "eval", plan.examples.evaluation),
        }
        with connection.errors():
            payloads.add_records(0, encode_records([Record(spec.name or spec.id, parts)]))
            connection.ledger.accept(spec.id, 1, 1)
    connection.send_tickets(spec)


def _write_part(
    connection: QueueConnection, payloads: JobPayloads, part: str, examples: Sequence[dict[str, Json]]
) -> int:
    records = (Record(number, example) for number, example in enumerate(examples))
    count = 0
    for number, (chunk, _) in enumerate(cut_chunks(records, ChunkPlan(CHUNK_RECORDS))):
        with connection.errors():
            payloads.add_examples(part, number, encode_records(chunk))
        count = number + 1
    return count
