"""`producer finetune` at the terminal: submits the job, waits for it and describes the model."""

import click

from common.console import INTERRUPTED
from common.jobs import TRAIN, JobStatus
from producer.cli.exit_status import exit_status
from producer.cli.run_submit import warn_if_unserved
from producer.cli.terminal import Notify
from producer.cli.watch import watch_to_end
from producer.client import Client
from producer.finetune.plan import FinetunePlan, submit_finetune
from producer.job_handle import JobHandle
from producer.model_check import check_job_model, model_warning


def run_finetune(client: Client, plan: FinetunePlan, say: Notify) -> int:
    """Submit the job, and see it through where its user waits; return the exit status."""
    for text in plan.examples.notes:
        say(text)
    if warning := model_warning(plan.spec.model, plan.settings):
        say(f"Warning: {warning}")
    check_job_model(client.connection, plan.spec.model)
    if not client.embedded:
        warn_if_unserved(client, TRAIN, say, "workers start --train")
    submit_finetune(client.connection, plan)
    handle = client.job(plan.spec.id)
    click.echo(handle.id)
    if not plan.wait:
        return 0
    job, interrupted = watch_to_end(client, handle, say)
    if job.status is JobStatus.COMPLETED:
        say(describe_model(handle))
    return INTERRUPTED if interrupted else exit_status(job)


def describe_model(handle: JobHandle) -> str:
    """Return what a completed fine-tune job produced, and how to use it."""
    job = handle.state
    [row] = handle.rows()
    result = row.outcome.output if row.outcome else {}
    measured = sorted(result["metrics"].items(), key=lambda pair: pair[0] == "loss")  # what people look for comes first
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in measured if isinstance(value, int | float))
    best = result.get("best_step")
    evaluation = f" Best evaluation{f' (step {best:,})' if best else ''}: {metrics}." if metrics else ""
    trained = f"{result['steps']:,} {'step' if result['steps'] == 1 else 'steps'} in {result['seconds']:,.0f} s"
    use = f"producer submit --task {job.spec.task} --model job:{job.id} FILE"
    return f"Model job:{job.id}: {trained}.{evaluation} Use it: {use}"
