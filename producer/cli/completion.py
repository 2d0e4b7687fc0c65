"""What shells are offered for the words of a command: names of tasks, and jobs."""

from itertools import islice

from click.shell_completion import CompletionItem

from common.errors import HugqueueError
from common.settings import load_settings

#: Jobs that are offered, the newest; and looked at.
_OFFERED, _LOOKED_AT = 20, 1000


def complete_tasks(begun: str) -> list[CompletionItem]:
    """Return the tasks that begin so."""
    from common.tasks import listed_tasks

    return [CompletionItem(name, help=task.summary) for name, task in listed_tasks() if name.startswith(begun)]


def complete_jobs(begun: str) -> list[CompletionItem]:
    """Return the newest jobs that begin so; none where no queue answers at once: nothing is started for it."""
    from producer.embedded.probe import Answer, probe
    from producer.embedded.state_dir import Place
    from producer.queue_connection import LAST, Connection

    try:
        settings = load_settings()
        if settings.embedded:
            settings = Place.of(settings).reached_by(settings)
        if probe(settings.broker_url or "") is not Answer.READY:
            return []
        connection = Connection(settings)
        with connection.errors():
            jobs = islice(connection.store.each_job(), _LOOKED_AT)
            found = [job for job in jobs if job.id.startswith(begun)]
    except HugqueueError:
        return []
    items = [CompletionItem(job.id, help=f"{job.status} {job.spec.name or job.spec.task}") for job in found[:_OFFERED]]
    return [*([CompletionItem(LAST, help="the newest")] if LAST.startswith(begun) else []), *items]
