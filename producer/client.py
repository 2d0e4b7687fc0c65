"""The client: from a Python program to a queue. The command line is written on it.

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
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

from common.errors import UsageError
from common.jobs import Job, JobStatus
from common.queue.heartbeats import serving
from common.records import Json, Record
from common.redis.url import check_redis_url, mask_url
from common.settings import Settings, load_settings
from producer.job_filter import JobFilter, check_labels
from producer.job_handle import JobHandle
from producer.model_check import check_job_model
from producer.queue_connection import QueueConnection
from producer.submit.duplicate_ids import warn_of_duplicate_ids
from producer.submit.idempotent import submit_once
from producer.submit.plan import SubmitPlan, make_plan
from producer.submit.python_records import RecordsArg, records_from_python, split_records_arg
from producer.submit.upload import Totals, submit

logger = logging.getLogger(__name__)


class Client(QueueConnection):
    """A queue to submit to; a context manager, closed by `close`.

    Settings come from the environment, as for the commands. Where no Redis is configured, the embedded one is found
    or started, with a worker once there is work; both live as long as a client (or a command) is open. May be shared
    by threads.

    Every method raises `StoreUnavailable` when Redis is away, and `UsageError` for arguments that are wrong.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        working: bool = False,
        keep_alive: float = 0.0,
        notify: Callable[[str], None] = logger.info,
    ) -> None:
        """Connect.

        Args:
            url: address of Redis; None: what the environment says, else the embedded one.
            working: whether an embedded queue's worker is wanted at once.
            keep_alive: for how many seconds that worker stays after `close`, its models loaded, for who comes next.
            say: gets a sentence about what was started.

        Raises:
            StoreUnavailable: Redis does not answer now, or the embedded one does not start.
            UsageError: the address or a setting is wrong, or the embedded queue cannot be had here.
        """
        settings = load_settings()
        self._configured = settings if url is None else replace(settings, broker_url=check_redis_url(url))
        self.embedded = self._configured.embedded
        self._notify = notify
        self._keep_alive = keep_alive
        self._resources = ExitStack()
        self._has_worker = not self.embedded
        self._warned = False
        if self.embedded:
            # Redis alone, for a moment's look, is not worth a word.
            settings = self._attach(working, notify if working else lambda _: None)
        super().__init__(settings if self.embedded else self._configured)
        try:
            self.check()
        except BaseException:
            self.close()
            raise
        logger.info("using Redis at %s", mask_url(self._url))

    def _attach(self, working: bool, notify: Callable[[str], None]) -> Settings:
        from producer.embedded.attach import attach

        settings = self._resources.enter_context(
            attach(self._configured, working=working, notify=notify, keep_alive=self._keep_alive)
        )
        self._has_worker = working
        return settings

    def start_worker(self) -> None:
        """Have a worker run as long as this client is open: a queue that is configured has its own."""
        if not self._has_worker:
            self._attach(True, self._notify)

    @property
    def keeps_worker(self) -> bool:
        """Whether an embedded queue's worker stays for a while once this client is closed."""
        return self.embedded and self._has_worker and self._keep_alive > 0

    def ensure_embedded(self, notify: Callable[[str], None]) -> None:
        """See that an embedded queue is there: one that was killed is started again."""
        if self.embedded:
            from producer.embedded.attach import ensure_running

            ensure_running(self._configured, working=self._has_worker, notify=notify)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of Redis; an embedded one stops when nobody else needs it, and its jobs stay as they are."""
        super().close()
        self._resources.close()

    def submit(  # noqa: PLR0913 - one argument for each option of the command
        self,
        *,
        task: str | None = None,
        records: RecordsArg,
        model: str | None = None,
        revision: str | None = None,
        params: Mapping[str, Json] | None = None,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        priority: str = "normal",
        column: str | None = None,
        id_column: str | None = None,
        format: str | None = None,
        quoting: str | None = None,
        device: str = "auto",
        chunk_size: int | None = None,
        max_errors: str | int | None = None,
        dtype: str | None = None,
        limit: int | None = None,
        idempotency_key: str | None = None,
        store: str | None = None,
        output: str | Path | None = None,
        output_format: str | None = None,
    ) -> JobHandle:
        """Submit records as one job, and return it as soon as it is accepted.

        Args:
            task: what to do with each record, as `producer tasks` lists them; None with `format="openai"`, whose
                requests say it.
            records: a path; several `pathlib.Path`; or the records themselves, read one after the other and never
                all held: texts, objects with the fields of the task, lists of chat messages, or pairs of an id and
                one of these; or a table: of pandas, polars, pyarrow or `datasets`, or an object of columns.
            model: a hub id, a directory as the worker sees it, or `job:ID`; None: the task's own.
            revision: branch, tag or commit of a hub model.
            params: options of the task, as `{"top_k": 3}`.
            name: your own word for the job.
            labels: words to find it by, as `{"run": "7"}`.
            priority: `low`, `normal` or `high`.
            column: the column (or key) that holds the input.
            id_column: the one that holds the id; None: `id` or `custom_id`, else the number from 0.
            format: of files, against their extension; `openai`: they are batch files.
            quoting: `double` or `none`: whether fields of CSV and TSV may be in double quotes; None: those of CSV.
            device: `auto`, `cpu` or `gpu`: which workers may do it.
            chunk_size: records in one chunk at most; None: the task's own.
            max_errors: `10` or `"5%"`: with more failed records than that the job ends early.
            dtype: what the model computes in: `float32`, `bfloat16`, `float16`, on CPUs `int8`; None: the worker's own.
            limit: only so many records, the first ones.
            idempotency_key: makes one job of all submits with this key; one that was cut off goes on where it stopped.
            store: where records and outcomes are kept; None: `HUGQUEUE_STORE_URL`, else Redis.
            output: a directory (or an address) that workers reach and write, a part for each chunk.
            output_format: of these parts: `parquet` or `jsonl`; None: Parquet.
        """
        paths, values = split_records_arg(records)
        if format == "openai" and not paths:
            raise UsageError('format="openai": batch files are given by their paths.')
        plan = make_plan(
            paths,
            task=task,
            model=model,
            revision=revision,
            params=params or (),
            name=name,
            labels=labels or {},
            priority=priority,
            column=column,
            id_column=id_column,
            format_=format,
            quoting=quoting,
            device=device,
            chunk_size=chunk_size,
            max_errors=None if max_errors is None else str(max_errors),
            dtype=dtype,
            limit=limit,
            idempotency_key=idempotency_key,
            store=store,
            output=None if output is None else f"{output}/",
            output_format=output_format,
            settings=replace(load_settings(), broker_url=self._configured.broker_url),
        )
        if output is not None and plan.spec.output is None:
            raise UsageError(f"output={str(output)!r}: workers do not reach it. Name a place under HUGQUEUE_SHARED.")
        most = plan.settings.max_record_bytes
        if paths:
            found = plan.peek_records()
        else:
            given = records_from_python(values, plan.task, column=column, id_column=id_column, max_record_bytes=most)
            found = islice(given, limit)
        if plan.warning:
            logger.warning("%s", plan.warning)
        self._warn_of_data_loss_risks()
        self.start_worker()
        job, _ = self.submit_plan(plan, warn_of_duplicate_ids(found, logger.warning), lambda _: None, logger.info)
        return job

    def _warn_of_data_loss_risks(self) -> None:
        """Log once why Redis may lose jobs."""
        if not self._warned:
            self._warned = True
            for weakness in self.durability_warnings():
                logger.warning("%s", weakness)

    def submit_plan(
        self,
        plan: SubmitPlan,
        records: Iterable[Record],
        on_chunk: Callable[[Totals], None],
        notify: Callable[[str], None],
    ) -> tuple[JobHandle, Totals | None]:
        """Submit records as the job of a plan.

        Args:
            plan: what to submit.
            records: those of its inputs.
            on_chunk: gets what was read, after each chunk.
            say: gets a sentence where another producer submits the same, or did.

        Returns:
            The job, and what was read; None where another producer has submitted it.

        Raises:
            UsageError: the model is that of a job which has none.
        """
        check_job_model(self, plan.spec.model)
        key, supply = plan.idempotency_key, plan.supply(records, serving(self.workers(), plan.spec.queue))
        if key is None:
            totals: Totals | None = submit(self, plan.spec, supply, on_chunk)
            return self.job(plan.spec.id), totals
        job_id, totals = submit_once(self, plan.spec, key, supply, on_chunk, notify)
        return self.job(job_id), totals

    def job(self, job_id: str) -> JobHandle:
        """Return the job of that id, which may be cut short, or `@last`: see `full_id`.

        Raises:
            UnknownJob: there is none, or no longer.
            UsageError: several ids begin so.
        """
        return JobHandle(self, self.look(self.full_id(job_id)))

    def logs(self, job_id: str) -> Iterator[str]:
        """Yield what the embedded queue's worker logged about a job, and about nothing else while the job ran.

        Raises:
            UsageError: the queue is configured: its workers log where they run.
            UnknownJob: there is no such job, or no longer.
        """
        job = self.job(job_id).state
        if not self.embedded:
            names = ", ".join(worker.name for worker in self.workers()) or "none is alive"
            raise UsageError(
                f"The workers of a queue of your own log where they run ({names}); look for {job.id} there."
            )
        from producer.embedded.job_log import job_entries

        return job_entries(job, self._configured)

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
            status: only those that stand so.
            name: only those of that name; `*` stands for any text.
            labels: only those that have all these labels.
            older_than: only those submitted more than so many seconds ago.
            limit: so many at most; None: all.
        """
        if limit is not None and limit < 0:
            raise UsageError(f"limit: expected a number of jobs, found {limit}.")
        if status is not None and status not in list(JobStatus):
            raise UsageError(f"status: expected one of {', '.join(JobStatus)}, found {status!r}.")
        job_filter = JobFilter(JobStatus(status) if status else None, name, check_labels(labels or {}), older_than)
        return [JobHandle(self, state) for state in islice(self._matching(job_filter), limit)]

    def _matching(self, job_filter: JobFilter) -> Iterator[Job]:
        with self.errors():
            yield from filter(job_filter.matches, self.store.each_job())
