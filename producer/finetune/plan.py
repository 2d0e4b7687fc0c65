"""Fine-tune plan: options and examples become a checked job, which is then submitted."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from common.errors import UsageError
from common.inputs.hub_datasets import is_hub_dataset
from common.jobs import TRAIN, JobSpec, new_job_id, truncate_names
from common.models.references import check_revision
from common.params import parse_params
from common.payloads.codec import encode_records
from common.payloads.job_payloads import JobPayloads
from common.records import Record
from common.settings import Settings, load_settings
from common.suggestions import did_you_mean
from common.tasks import ALIASES
from common.tracing import job_attributes, span
from common.training.checks import check_fit, check_options
from common.training.kinds import TASK_KINDS, Example
from common.training.options import TrainingOptions
from common.training.reporters import not_allowed
from producer.finetune.options import FinetuneOptions
from producer.finetune.training_data import CHUNK_RECORDS, ExampleReader, ExampleSet, ExampleSource
from producer.model_check import check_model
from producer.queue_connection import QueueConnection
from producer.submit.chunking import ChunkPlan, cut_chunks
from producer.submit.job_input import names_job
from producer.submit.options import job_names
from producer.submit.plan import check_spec, notify_url_of
from producer.submit.upload import rollback_on_error


@dataclass(frozen=True, slots=True)
class FinetunePlan:
    """What a fine-tune submit is about to do."""

    settings: Settings
    spec: JobSpec
    examples: ExampleSet
    wait: bool
    after: tuple[str, ...] = ()  #: names of the jobs that it waits for, as the user gave them


def make_finetune_plan(
    train: Sequence[str] | ExampleSource,
    options: FinetuneOptions,
    evaluation: ExampleSource | None = None,
    settings: Settings | None = None,
) -> FinetunePlan:
    """Return the plan of a fine-tune job.

    Args:
        train: Files with the training data, or one dataset on the Hub; or Python objects.
        options: What the user chose.
        evaluation: What to evaluate with, in place of `options.evaluation`.
        settings: None: those of the environment.

    Raises:
        UsageError: An option or an example is wrong.
    """
    settings, task = settings or load_settings(), _find_trainable(options.task)
    source = train if isinstance(train, ExampleSource) else ExampleSource(tuple(train))
    if names_job(source.paths):
        raise UsageError(
            f"{source.paths[0]}: examples are read when they are submitted. Write the results of that job to a file "
            "with `producer results JOB -o FILE`, and submit that."
        )
    if evaluation is None and options.evaluation is not None:
        evaluation = ExampleSource((options.evaluation,))
    training = _training_options(source, evaluation, options)
    evaluates = evaluation is not None or training.eval_split is not None
    check_options(task, training, evaluates=evaluates)
    if settings.embedded and (refused := not_allowed(training.report_to, settings.report_to)):
        raise UsageError(f"--report-to: {refused}")
    spec = JobSpec(
        id=new_job_id(),
        task=task,
        model=check_model(options.model, settings),
        revision=check_revision(options.revision),
        queue=TRAIN,
        priority=options.priority,
        name=options.name,
        labels=dict(options.labels),
        inputs=truncate_names((*source.paths, *(evaluation.paths if evaluation else ()))),
        created_at=time.time(),
        store=settings.store_url or None,
        notify=notify_url_of(options.notify, settings),
        training=training.encode(),
        after_any=options.after_any,
    )
    check_spec(spec)
    examples = ExampleReader(task, options, training, settings.max_record_bytes).read(source, evaluation)
    if examples.labels is not None:
        check_fit(task, training, examples.labels, examples.train, examples.evaluation)
        spec = replace(spec, training=replace(training, labels=examples.labels).encode())
    return FinetunePlan(settings, spec, examples, options.wait or settings.embedded, job_names(options.after))


def _find_trainable(name: str) -> str:
    task = ALIASES.get(name, name)
    if task not in TASK_KINDS:
        raise UsageError(f"--task {name}: it cannot be fine-tuned. {did_you_mean(name, TASK_KINDS)}")
    return task


def _training_options(
    train: ExampleSource, evaluation: ExampleSource | None, options: FinetuneOptions
) -> TrainingOptions:
    if evaluation is not None and options.training.get("eval_split") is not None:
        raise UsageError("--eval and --eval-split: use only one.")
    sources = {"train_source": _hub_dataset(train), "eval_source": _hub_dataset(evaluation)}
    params = options.params
    arguments = dict(params) if isinstance(params, Mapping) else parse_params(params)
    return TrainingOptions.decode({**options.training, **sources, "arguments": arguments})


def _hub_dataset(source: ExampleSource | None) -> str | None:
    """Return the one dataset on the Hub that is left to the worker; among other inputs, it is read here."""
    if source is None or len(source.paths) != 1 or not is_hub_dataset(source.paths[0]):
        return None
    return source.paths[0]


def submit_finetune(connection: QueueConnection, plan: FinetunePlan) -> None:
    """Write the examples and the one chunk that refers to them, accept the job, and send its ticket.

    Raises:
        StoreUnavailable: Redis cannot be reached or is full.
        NotSubmitting: The job was cancelled or deleted meanwhile.
    """
    with span("hugqueue.submit", job_attributes(plan.spec, "send"), kind="PRODUCER") as traced:
        _submit(connection, replace(plan.spec, traceparent=traced.traceparent), plan.examples)


def _submit(connection: QueueConnection, spec: JobSpec, examples: ExampleSet) -> None:
    payloads = connection.store.payloads(spec)
    with connection.errors():
        connection.store.create(spec)
    with rollback_on_error(connection, spec.id):
        parts = {
            "train": _write_part(connection, payloads, "train", examples.train),
            "eval": _write_part(connection, payloads, "eval", examples.evaluation),
        }
        with connection.errors():
            payloads.add_records(0, encode_records([Record(spec.name or spec.id, parts)]))
            connection.ledger.accept(spec.id, 1, 1)
    connection.send_tickets(spec)


def _write_part(connection: QueueConnection, payloads: JobPayloads, part: str, examples: Sequence[Example]) -> int:
    records = (Record(number, dict(example)) for number, example in enumerate(examples))
    count = 0
    for number, (chunk, _) in enumerate(cut_chunks(records, ChunkPlan(CHUNK_RECORDS))):
        with connection.errors():
            payloads.add_examples(part, number, encode_records(chunk))
        count = number + 1
    return count
