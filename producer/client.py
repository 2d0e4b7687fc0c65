"""The Python API: submit records to a queue, wait for jobs, read results. The command line is built on it.

```python
from hugqueue import Client

with Client() as client:
    job = client.submit(task="fill-mask", records=["The capital of France is [MASK]."])
    job.wait()
    for row in job.results():
        print(row.id, row.output)
```
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from common.errors import UsageError
from common.jobs import Job, JobStatus
from common.own_columns import Keep
from common.queue.heartbeats import Heartbeat, serving
from common.records import Record
from common.redis.url import check_redis_url, mask_url
from common.settings import load_settings
from common.storage.locations import MayOpen, any_location
from common.tracing import job_attributes, span
from producer.job_filter import JobFilter, check_labels
from producer.job_handle import JobHandle
from producer.model_check import model_warning
from producer.outputs.hub_target import is_hub_output
from producer.predecessors import with_predecessors
from producer.queue_connection import QueueConnection
from producer.submit.chunk_source import open_source
from producer.submit.duplicate_ids import warn_of_duplicate_ids
from producer.submit.idempotent import submit_idempotently
from producer.submit.job_input import JobInput
from producer.submit.job_source import open_job_input
from producer.submit.locations import check_locations
from producer.submit.options import SubmitKeywords, SubmitOptions
from producer.submit.plan import SubmitPlan, make_plan
from producer.submit.python_records import RecordsArg, python_builder, records_from_python, split_records_arg
from producer.submit.upload import Totals

if TYPE_CHECKING:
    from producer.embedded.attach import EmbeddedSession

logger = logging.getLogger(__name__)


class Client:
    """A client of a queue; a context manager that `close` ends. Threads may share it.

    Settings come from the environment, as for the commands. If no Redis is configured, the embedded one is found or
    started, with a worker once there is work; both stay as long as a client (or a command) is open.

    Every method raises `StoreUnavailable` when Redis cannot be reached, and `UsageError` for wrong arguments.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        with_worker: bool = False,
        keep_alive: float = 0.0,
        notify: Callable[[str], None] | None = None,
        may_open: MayOpen = any_location,
    ) -> None:
        """Connect.

        Args:
            url: URL of Redis; None: from the environment, otherwise the embedded one.
            with_worker: Start the embedded queue's worker at once.
            keep_alive: Seconds for which that worker stays after `close`, with its models loaded.
            notify: Called with a sentence about what was started or went wrong; None: these are logged.
            may_open: Which of the paths and URLs that `submit` is given it may open, for a client that submits for
                others.

        Raises:
            StoreUnavailable: Redis does not answer, or the embedded one does not start.
            UsageError: The URL or a setting is wrong, or an embedded queue cannot run here.
        """
        settings = load_settings()
        self._configured = settings if url is None else replace(settings, broker_url=check_redis_url(url))
        self._may_open = may_open
        self._session: EmbeddedSession | None = None
        warn = notify or logger.warning
        if self._configured.embedded:
            from producer.embedded import attach

            self._session = attach.EmbeddedSession(self._configured, notify or logger.info, warn, keep_alive)
            settings = self._session.open(worker=with_worker)
        else:
            settings = self._configured
        self.connection = QueueConnection(settings, self._session, warn)
        self._checked_durability = False
        try:
            self.connection.check()
        except BaseException:
            self.close()
            raise
        logger.info("using Redis at %s", mask_url(settings.broker_url or ""))

    @property
    def embedded(self) -> bool:
        """Whether the queue is embedded."""
        return self.connection.embedded

    @property
    def keeps_worker(self) -> bool:
        """Whether an embedded queue's worker stays for a while after `close`."""
        return self._session is not None and self._session.keeps_worker

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect. An embedded Redis stops when nobody else needs it; its jobs stay as they are."""
        self.connection.close()
        if self._session is not None:
            self._session.close()

    def submit(self, *, records: RecordsArg | JobHandle, **options: Unpack[SubmitKeywords]) -> JobHandle:
        """Submit records as one job, and return it as soon as it is accepted.

        Args:
            records: A path; several `pathlib.Path`; a job, or `"job:ID"`, for its results, which need not be there yet;
                or the records themselves, read one by one and never all held: texts, objects with the fields of the
                task, lists of chat messages, or pairs of an id and one of these; or a table: of pandas, polars, pyarrow
                or `datasets`, or an object of columns.
            options: Keywords as in `SubmitOptions`: task, model, revision, params, dtype, column, template, system,
                chat, id_column, format, quoting, limit, keep, name, labels, priority, device, chunk_size, max_errors,
                after (jobs that it waits for: handles or ids), after_any, idempotency_key, store, output (a directory
                or URL that workers reach), output_format, output_column and notify (a URL that workers POST to when the
                job has ended).
        """
        if unknown := options.keys() - SubmitKeywords.__annotations__.keys():
            raise TypeError(f"submit() got an unexpected keyword argument {min(unknown)!r}")
        chosen = SubmitOptions(**options)
        if isinstance(records, JobHandle):
            records = f"job:{records.id}"
        if isinstance(records, str):  # before a pattern is looked for
            check_locations([records], chosen, self._may_open)
        paths, values = split_records_arg(records)
        if chosen.format == "openai" and not paths:
            raise UsageError('format="openai": pass the paths of batch files.')
        if chosen.output is not None and is_hub_output(str(chosen.output)):
            raise UsageError(f"output={chosen.output!r}: results go to the Hub with `job.push_to_hub(...)`.")
        if chosen.output is not None:
            chosen = replace(chosen, output=f"{chosen.output}/")
        settings = replace(load_settings(), broker_url=self._configured.broker_url)
        plan = make_plan(paths, chosen, settings, self._may_open)
        if chosen.output is not None and plan.spec.output is None:
            raise UsageError(
                f"output={chosen.output!r}: workers cannot access it. Name a directory in HUGQUEUE_SHARED."
            )
        if paths:
            plan, found = plan.peek()
        else:
            keep = Keep(plan.spec.keep, plan.spec.output_column)
            builder = python_builder(plan.task, chosen.column, chosen.id_column, keep, plan.template)
            made = records_from_python(values, builder, settings.max_record_bytes, settings.shared, self._may_open)
            plan, found = plan.with_columns_of(islice(made, chosen.limit), builder)
        if plan.warning:
            logger.warning("%s", plan.warning)
        self._warn_once_of_durability()
        self.connection.start_worker()
        job, _ = self.submit_plan(plan, warn_of_duplicate_ids(found, logger.warning))
        return job

    def finetune(
        self, *, records: RecordsArg, evaluation: RecordsArg | None = None, model: str, **options: Any
    ) -> JobHandle:
        """Submit a fine-tune job, and return it as soon as it is accepted; its model is `job:ID`.

        Args:
            records: The examples: a path, several `pathlib.Path`, a dataset on the Hub (`"hf:ORG/NAME"`), objects with
                text and label, or a table, as for `submit`. All of them are held in memory.
            evaluation: Examples to evaluate with, likewise.
            model: The base model: Hub id, directory on the worker's machine, or `job:ID`.
            options: Keywords as in `FinetuneOptions` and `TrainingOptions`: task, text_column, label_column, template,
                epochs, learning_rate, notify and others.
        """
        from producer.finetune.options import KEYWORDS, FinetuneOptions
        from producer.finetune.plan import make_finetune_plan, submit_finetune
        from producer.finetune.training_data import ExampleSource

        if unknown := options.keys() - (KEYWORDS - {"evaluation", "wait"}):
            raise TypeError(f"finetune() got an unexpected keyword argument {min(unknown)!r}")
        plan = make_finetune_plan(
            ExampleSource(*split_records_arg(records)),
            FinetuneOptions.of(model=model, **options),
            None if evaluation is None else ExampleSource(*split_records_arg(evaluation)),
            replace(load_settings(), broker_url=self._configured.broker_url),
        )
        for text in filter(None, (*plan.examples.notes, model_warning(plan.spec.model, plan.settings))):
            logger.info("%s", text)
        self._warn_once_of_durability()
        plan = replace(plan, spec=with_predecessors(self.connection, plan.spec, plan.after, plan.settings))
        self.connection.start_worker()
        submit_finetune(self.connection, plan)
        return self.job(plan.spec.id)

    def _warn_once_of_durability(self) -> None:
        if not self._checked_durability:
            self._checked_durability = True
            for warning in self.connection.durability_warnings():
                logger.warning("%s", warning)

    def submit_plan(
        self,
        plan: SubmitPlan,
        records: Iterable[Record],
        on_chunk: Callable[[Totals], None] = lambda _: None,
        notify: Callable[[str], None] = logger.info,
    ) -> tuple[JobHandle, Totals | None]:
        """Submit records as the job of a plan.

        Args:
            plan: What to submit.
            records: Those of its inputs.
            on_chunk: Called after each chunk with what was read so far.
            notify: Called with a sentence if another producer submits the same job, or did.

        Returns:
            The job, and what was read; None if another producer has submitted it.

        Raises:
            UsageError: The model is that of a job without one, or a job that is to be waited for or read is unknown.
        """
        if isinstance(plan.inputs, JobInput):
            plan, source = open_job_input(self.connection, plan, plan.inputs)
        else:
            source = open_source(plan, records, serving(self.workers(), plan.spec.queue))
        plan = replace(plan, spec=with_predecessors(self.connection, plan.spec, plan.after, plan.settings))
        with span("hugqueue.submit", job_attributes(plan.spec, "send"), kind="PRODUCER") as traced:
            spec = replace(plan.spec, traceparent=traced.traceparent)
            job_id, totals = submit_idempotently(self.connection, spec, plan.idempotency_key, source, on_chunk, notify)
            if totals is not None:
                traced.note({"messaging.batch.message_count": totals.records, "hugqueue.chunks": totals.chunks})
        return self.job(job_id), totals

    def job(self, job_id: str) -> JobHandle:
        """Return the job with this id, prefix of an id, or `@last` (see `QueueConnection.full_id`).

        Raises:
            UnknownJob: There is no such job.
            UsageError: Several ids have the prefix.
        """
        return JobHandle(self.connection, self.connection.load_job(self.connection.full_id(job_id)))

    def job_of_key(self, key: str | None) -> str | None:
        """Return the id of the job that was submitted with an idempotency key; None if there is none."""
        with self.connection.errors():
            return None if key is None else self.connection.store.of_key(key)

    def workers(self) -> list[Heartbeat]:
        """Return the live workers."""
        return self.connection.workers()

    def logs(self, job_id: str) -> Iterator[str]:
        """Yield what the embedded queue's worker logged about a job, or about no job while it ran.

        Raises:
            UsageError: The queue is not embedded: its workers log where they run.
            UnknownJob: There is no such job.
        """
        job = self.job(job_id).state
        if not self.embedded:
            names = ", ".join(worker.name for worker in self.workers()) or "none is alive"
            raise UsageError(f"Workers on your own Redis log where they run ({names}); look for {job.id} there.")
        from producer.embedded.log_files import job_entries
        from producer.embedded.state_dir import StateDir

        return job_entries(job, StateDir.of(self._configured).worker_log)

    def jobs(
        self,
        *,
        status: JobStatus | str | None = None,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        older_than: float | None = None,
        limit: int | None = None,
    ) -> list[JobHandle]:
        """Return jobs, the newest first.

        Args:
            status: Only jobs with this status.
            name: Only jobs with this name; `*` matches any text.
            labels: Only jobs with all of these labels.
            older_than: Only jobs submitted more than this many seconds ago.
            limit: At most this many; None: all.
        """
        if limit is not None and limit < 0:
            raise UsageError(f"limit: expected a number of jobs, found {limit}.")
        if status is not None and status not in list(JobStatus):
            raise UsageError(f"status: expected one of {', '.join(JobStatus)}, found {status!r}.")
        job_filter = JobFilter(JobStatus(status) if status else None, name, check_labels(labels or {}), older_than)
        return [JobHandle(self.connection, state) for state in islice(self._matching(job_filter), limit)]

    def _matching(self, job_filter: JobFilter) -> Iterator[Job]:
        with self.connection.errors():
            yield from self.connection.store.each_job(job_filter.status, job_filter.matches_spec)
