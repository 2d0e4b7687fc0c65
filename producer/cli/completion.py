"""What shells are offered for the words of a command: names of tasks, and jobs."""

from itertools import islice

from click.shell_completion import CompletionItem

from common.errors import HugqueueError
from common.settings import load_settings

#: Jobs that are offered, the newest; and looked at.
_MAX_OFFERED, _MAX_SCANNED = 20, 1000


def complete_tasks(prefix: str) -> list[CompletionItem]:
    """Return the tasks that begin so."""
    from common.tasks import list_tasks

    return [CompletionItem(name, help=task.summary) for name, task in list_tasks() if name.startswith(prefix)]


def complete_jobs(prefix: str) -> list[CompletionItem]:
    """Return the newest jobs that begin so; none where no queue answers at once: nothing is started for it."""
    from producer.embedded.probe import ServerState, probe
    from producer.embedded.state_dir import StateDir
    from producer.queue_connection import LAST, QueueConnection

    try:
        settings = load_settings()
        if settings.embedded:
            settings = StateDir.of(settings).apply_to(settings)
        if probe(settings.broker_url or "") is not ServerState.READY:
            return []
        connection = QueueConnection(settings)
        with connection.errors():
            jobs = islice(connection.store.each_job(), _MAX_SCANNED)
            found = [job for job in jobs if job.id.startswith(prefix)]
    except HugqueueError:
        return []
    items = [
        CompletionItem(job.id, help=f"{job.status} {job.spec.name or job.spec.task}") for job in found[:_MAX_OFFERED]
    ]
    return [*([CompletionItem(LAST, help="the newest")] if LAST.startswith(prefix) else []), *items]
