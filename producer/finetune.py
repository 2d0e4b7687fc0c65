"""From the options of `finetune` to a job: everything checked that can be checked before any work, then submitted."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import click

from common.console import INTERRUPTED
from common.errors import UsageError
from common.jobs import Job
from common.models.names import check_revision
from common.nearest import did_you_mean
from common.params import parse_params
from common.payloads.encoding import encode_records
from common.payloads.job_payloads import JobPayloads
from common.settings import Settings, load_settings
from common.tasks import ALIASES
from common.training.arguments import FIELDS
from common.training.labels import check_metric
from common.training.spec import HUB_PREFIX, LABEL_KINDS, Training, check
from common.training.together import check_together
from common.values import TRAIN, JobSpec, JobStatus, Json, Record, new_job_id, shortened
from producer.chunks import ChunkPlan, cut_chunks
from producer.client import Client
from producer.examples import CHUNK_RECORDS, ExampleSet, read_examples
from producer.exits import exit_status
from producer.follow import follow_to_end
from producer.model_check import check_job_model, check_model, model_warning
from producer.plan import check_spec
from producer.printing import Say
from producer.run import warn_of_queue
from producer.submission import taken_back


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
    check_together(training, None, None, evaluates=evaluates)
    spec = JobSpec(
        id=new_job_id(),
        task=task,
        model=check_model(model, settings),
        revision=check_revision(revision),
        queue=TRAIN,
        priority=priority,
        name=name,
        labels=dict(labels or {}),
        inputs=shortened((*inputs, *([evaluation] if evaluation else []))),
        created_at=time.time(),
        store=settings.store_url or None,
        training=training.encode(),
    )
    check_spec(spec)
    examples = read_examples(task, inputs, evaluation, training, eval_split, settings, format_, quoting)
    if examples.labels is not None:
        check_together(training, examples.labels, len(examples.train), evaluates=evaluates)
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
) -> Training:
    hubs = [name for name in inputs if name.startswith(HUB_PREFIX)]
    if hubs and len(inputs) > 1:
        raise UsageError(f"{hubs[0]} cannot be joined with other inputs; name one data set of the hub alone.")
    if evaluation is not None and eval_split is not None:
        raise UsageError("--eval and --eval-split: give one of them.")
    training = Training(
        **options,
        arguments=params,
        train_source=hubs[0] if hubs else None,
        eval_source=evaluation if evaluation and evaluation.startswith(HUB_PREFIX) else None,
        eval_split=eval_split,
    )
    check(training)
    return training


def run_finetune(client: Client, plan: FinetunePlan, say: Say) -> int:
    """Submit the job, and see it through where its user waits; return the exit status."""
    for text in plan.examples.said:
        say(text)
    if warning := model_warning(plan.spec.model, plan.settings):
        say(f"Warning: {warning}")
    check_job_model(client, plan.spec.model)
    if not client.embedded:
        warn_of_queue(client, TRAIN, say, "workers start --train")
    submit_finetune(client, plan)
    job_id = plan.spec.id
    click.echo(job_id)
    if not plan.wait:
        return 0
    job, interrupted = follow_to_end(client, job_id, say)
    if job.status is JobStatus.COMPLETED:
        say(describe_model(client, job, say))
    return INTERRUPTED if interrupted else exit_status(job)


def submit_finetune(client: Client, plan: FinetunePlan) -> None:
    """Write the examples and the one chunk that refers to them, accept the job, and send its ticket.

    Raises:
        StoreUnavailable: Redis is away or full.
        NotSubmitting: the job was given up or cancelled meanwhile.
    """
    spec = plan.spec
    payloads = client.store.payloads(spec)
    with client.errors():
        client.store.create(spec)
    with taken_back(client, spec.id):
        parts = {
            "train": _write_part(client, payloads, "train", plan.examples.train),
            "eval": _write_part(client, payloads, "eval", plan.examples.evaluation),
        }
        with client.errors():
            payloads.add_records(0, encode_records([Record(spec.name or spec.id, parts)]))
            client.ledger.seal(spec.id, 1, 1)
    client.send_tickets(spec)


def _write_part(client: Client, payloads: JobPayloads, part: str, examples: Sequence[dict[str, Json]]) -> int:
    records = (Record(number, example) for number, example in enumerate(examples))
    count = 0
    for number, (chunk, _) in enumerate(cut_chunks(records, ChunkPlan(CHUNK_RECORDS))):
        with client.errors():
            payloads.add_examples(part, number, encode_records(chunk))
        count = number + 1
    return count


def describe_model(client: Client, job: Job, say: Say) -> str:
    """Return what came of a completed fine-tune job, and how to use it; `say` is told when Redis is away."""
    [row] = client.rows(job, say)
    result = row.outcome.output if row.outcome else {}
    measured = sorted(result["metrics"].items(), key=lambda pair: pair[0] == "loss")  # what people look for comes first
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in measured if isinstance(value, int | float))
    best = result.get("best_step")
    evaluation = f" Best evaluation{f' (step {best:,})' if best else ''}: {metrics}." if metrics else ""
    trained = f"{result['steps']:,} {'step' if result['steps'] == 1 else 'steps'} in {result['seconds']:,.0f} s"
    use = f"producer submit --task {job.spec.task} --model job:{job.id} FILE"
    return f"Model job:{job.id}: {trained}.{evaluation} Use it: {use}"
