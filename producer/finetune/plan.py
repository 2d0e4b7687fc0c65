"""Fine-tune plan: options and examples become a checked job, which is then submitted."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from common.errors import UsageError
from common.jobs import TRAIN, JobSpec, new_job_id, truncate_names
from common.models.references import check_revision
from common.params import parse_params
from common.payloads.codec import encode_records
from common.payloads.job_payloads import JobPayloads
from common.records import Record
from common.settings import Settings, load_settings
from common.suggestions import did_you_mean
from common.tasks import ALIASES
from common.training.labels import LABEL_KINDS, Example, check_metric
from common.training.options import HUB_PREFIX, TrainingOptions, check_conflicts
from producer.finetune.options import FinetuneOptions
from producer.finetune.training_data import CHUNK_RECORDS, ExampleSet, read_examples
from producer.model_check import check_model
from producer.queue_connection import QueueConnection
from producer.submit.chunking import ChunkPlan, cut_chunks
from producer.submit.plan import check_spec
from producer.submit.upload import rollback_on_error


@dataclass(frozen=True, slots=True)
class FinetunePlan:
    """What a fine-tune submit is about to do."""

    settings: Settings
    spec: JobSpec
    examples: ExampleSet
    wait: bool


def make_finetune_plan(inputs: Sequence[str], options: FinetuneOptions) -> FinetunePlan:
    """Return the plan of a fine-tune job.

    Args:
        inputs: Files with the training data, or one dataset on the Hub.
        options: What the user chose.

    Raises:
        UsageError: An option or an example is wrong.
    """
    settings, task = load_settings(), _find_trainable(options.task)
    training = _training_options(inputs, options)
    check_conflicts(training, None, None, evaluates=options.evaluates)
    spec = JobSpec(
        id=new_job_id(),
        task=task,
        model=check_model(options.model, settings),
        revision=check_revision(options.revision),
        queue=TRAIN,
        priority=options.priority,
        name=options.name,
        labels=dict(options.labels),
        inputs=truncate_names((*inputs, *filter(None, [options.evaluation]))),
        created_at=time.time(),
        store=settings.store_url or None,
        training=training.encode(),
    )
    check_spec(spec)
    examples = read_examples(task, inputs, options, training, settings.max_record_bytes)
    if training.metric_for_best:
        check_metric(task, examples.labels, training.metric_for_best)
    if examples.labels is not None:
        check_conflicts(training, examples.labels, len(examples.train), evaluates=options.evaluates)
        spec = replace(spec, training=replace(training, labels=examples.labels).encode())
    return FinetunePlan(settings, spec, examples, options.wait or settings.embedded)


def _find_trainable(name: str) -> str:
    task = ALIASES.get(name, name)
    if task not in LABEL_KINDS:
        raise UsageError(f"--task {name}: it cannot be fine-tuned. {did_you_mean(name, LABEL_KINDS)}")
    return task


def _training_options(inputs: Sequence[str], options: FinetuneOptions) -> TrainingOptions:
    hub_datasets = [name for name in inputs if name.startswith(HUB_PREFIX)]
    if hub_datasets and len(inputs) > 1:
        raise UsageError(f"{hub_datasets[0]} cannot be combined with other inputs; name one Hub dataset alone.")
    evaluation = options.evaluation
    if evaluation is not None and options.training.get("eval_split") is not None:
        raise UsageError("--eval and --eval-split: use only one.")
    sources = {
        "train_source": hub_datasets[0] if hub_datasets else None,
        "eval_source": evaluation if evaluation and evaluation.startswith(HUB_PREFIX) else None,
    }
    return TrainingOptions.decode({**options.training, **sources, "arguments": parse_params(options.params)})


def submit_finetune(connection: QueueConnection, plan: FinetunePlan) -> None:
    """Write the examples and the one chunk that refers to them, accept the job, and send its ticket.

    Raises:
        StoreUnavailable: Redis cannot be reached or is full.
        NotSubmitting: The job was cancelled or deleted meanwhile.
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


def _write_part(connection: QueueConnection, payloads: JobPayloads, part: str, examples: Sequence[Example]) -> int:
    records = (Record(number, dict(example)) for number, example in enumerate(examples))
    count = 0
    for number, (chunk, _) in enumerate(cut_chunks(records, ChunkPlan(CHUNK_RECORDS))):
        with connection.errors():
            payloads.add_examples(part, number, encode_records(chunk))
        count = number + 1
    return count
