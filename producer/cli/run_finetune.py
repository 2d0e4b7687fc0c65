"""Running a fine-tune plan: submits the job and, if the user waits for it, describes the trained model."""

from dataclasses import replace

import click

from common.console import INTERRUPTED
from common.jobs import TRAIN, JobStatus
from producer.cli.progress import format_metrics
from producer.cli.run_submit import accepted_status, warn_if_unserved
from producer.cli.terminal import Notify, exit_status
from producer.cli.watch import watch_submitted_job
from producer.client import Client
from producer.finetune.plan import FinetunePlan, submit_finetune
from producer.job_handle import JobHandle
from producer.model_check import model_warning
from producer.predecessors import with_predecessors


def run_finetune(client: Client, plan: FinetunePlan, notify: Notify) -> int:
    """Submit the job, and wait for it if the plan says so; return the exit status."""
    for text in plan.examples.notes:
        notify(text)
    if warning := model_warning(plan.spec.model, plan.settings):
        notify(f"Warning: {warning}")
    plan = replace(plan, spec=with_predecessors(client.connection, plan.spec, plan.after, plan.settings))
    if not client.embedded:
        warn_if_unserved(client, TRAIN, notify, "workers start --train")
    submit_finetune(client.connection, plan)
    handle = client.job(plan.spec.id)
    click.echo(handle.id)
    if not plan.wait:
        return accepted_status(handle, notify)
    job, interrupted = watch_submitted_job(client, handle, notify)
    if job.status is JobStatus.COMPLETED:
        notify(describe_model(handle))
    return INTERRUPTED if interrupted else exit_status(job)


def describe_model(handle: JobHandle) -> str:
    """Describe the model of a completed fine-tune job: its metrics, and how to use it."""
    job = handle.state
    [row] = handle.rows()
    result = row.outcome.output if row.outcome else {}
    metrics = format_metrics(dict(sorted(result["metrics"].items(), key=lambda pair: pair[0] == "loss")))  # loss last
    best = result.get("best_step")
    evaluation = f" Best evaluation{f' (step {best:,})' if best else ''}: {metrics}." if metrics else ""
    trained = f"{result['steps']:,} {'step' if result['steps'] == 1 else 'steps'} in {result['seconds']:,.0f} s"
    use = f"producer submit --task {job.spec.task} --model job:{job.id} FILE"
    return f"Model job:{job.id}: {trained}.{evaluation} Use it with: {use}"
