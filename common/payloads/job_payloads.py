"""Job payloads: the records and outcomes of a job's chunks, as producers and workers read and write them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import redis

from common.errors import ModelError, PayloadError, ResultsLost, UsageError, WorkerError
from common.inputs.file_split import FileSplit, is_split
from common.inputs.job_split import MAX_DEPTH, JobSplit, is_job_split
from common.inputs.splitting import read_split
from common.jobs import JobSpec, Output
from common.own_columns import KEEP_NONE, Keep, Own
from common.payloads.backends import (
    FilePayloads,
    RedisPayloads,
    Version,
    decode_versions,
    outcome_name,
)
from common.payloads.chunk_rows import chunk_rows
from common.payloads.codec import decode_records, encode_records, output_type
from common.payloads.own_columns import decode_own
from common.records import Record
from common.redis.keys import JobKeys
from common.redis.scripts import Scripts
from common.storage.locations import MayOpen
from common.tasks import Task, declared_output, find_task
from common.template import Template

if TYPE_CHECKING:  # they load modules of pyarrow that most jobs do not need
    from common.payloads.output_committer import OutputCommitter


class JobPayloads:
    """Records and outcomes of one job, in Redis or in files.

    Every method raises `redis.RedisError` if Redis is away or full, and `StorageError` if files cannot be read or
    written now.
    """

    def __init__(
        self, client: "redis.Redis", scripts: Scripts, spec: JobSpec, may_open: MayOpen, *, depth: int = 0
    ) -> None:
        """Open the job's payloads.

        Args:
            client: a connection.
            scripts: of that connection.
            spec: the job.
            may_open: whether this process may open a path or URL that a job names.
            depth: through how many other jobs, which read results, this one was reached.

        Raises:
            ModelError: `address_not_allowed`, the job names a location that this process may not open.
        """
        self._client = client
        self._scripts = scripts
        self._depth = depth
        self._spec = spec
        self._may_open = may_open
        self._keep = Keep(spec.keep, spec.output_column)
        self._keys = JobKeys.of(spec.id)
        self._store = open_payloads(client, scripts, spec, may_open)
        self._parts: OutputCommitter | None = None
        #: A chunk with its records, and their own columns if those were read too, for its part.
        self._read: tuple[int, bytes, list[Own] | None] | None = None
        if spec.output is not None:
            self._check(spec.output.location)
            self._parts = _open_parts(spec, spec.output)

    def add_records(self, chunk: int, payload: bytes, own: bytes | None = None) -> None:
        """Write the payload of a chunk's records, and note that the producer is alive.

        Args:
            chunk: its number, from 0.
            payload: its records, a `FileSplit` or a `JobSplit`.
            own: the payload of their own columns, if they are not in the records themselves.

        Raises:
            NotSubmitting: the job was given up, cancelled or deleted meanwhile.
        """
        if own is not None:
            self._store.add_input(_own_name(chunk), own)
        self._store.add_input(str(chunk), payload)

    def records(self, chunk: int) -> bytes | None:
        """Return the payload of a chunk's records, None if there is none.

        Raises:
            PayloadError: the file of the chunk's split was changed, or is damaged.
            ModelError: `address_not_allowed`, it may not be opened here; `unknown_task`; `results_lost`, the job whose
                results are the records is gone.
        """
        if self._read is not None and self._read[0] == chunk:
            return self._read[1]
        payload = self._store.input(str(chunk))
        if payload is None:
            return None
        own = None
        if is_split(payload):
            records = self._read_split(payload, self._keep if self._parts else KEEP_NONE)
            payload, own = encode_records(records), [record.own for record in records]
        if self._parts is not None:
            self._read = chunk, payload, own
        return payload

    def records_with_own(self, chunk: int) -> list[Record] | None:
        """Return a chunk's records with their own columns, None if there are none.

        Raises:
            PayloadError, ModelError: as for `records`.
        """
        read = self._read if self._read is not None and self._read[0] == chunk else None
        payload = read[1] if read else self._store.input(str(chunk))
        if payload is None:
            return None
        if is_split(payload):
            return self._read_split(payload, self._keep)
        records = decode_records(payload)
        own = read[2] if read else None
        if own is None and self._spec.keep != ():
            stored = self._store.input(_own_name(chunk))
            own = decode_own(stored, [record.input for record in records]) if stored is not None else None
        return records if own is None else [replace(record, own=o) for record, o in zip(records, own, strict=True)]

    def count_records(self, chunk: int) -> int:
        """Return how many records a chunk has.

        Raises:
            PayloadError, ModelError: as for `records`; or it has none.
        """
        payload = self._store.input(str(chunk))
        if payload is not None and is_job_split(payload):
            split = JobSplit.decode(payload)
            return split.records or self._of_job(split.job).count_records(split.chunk)
        records = self.records_with_own(chunk)
        if records is None:
            raise PayloadError("its records are missing")
        return len(records)

    def _read_split(self, payload: bytes, keep: Keep) -> list[Record]:
        try:
            task = find_task(self._spec.task)
        except UsageError as error:
            raise ModelError("unknown_task", str(error)) from error
        template = Template.parse(self._spec.template) if self._spec.template else None
        if is_job_split(payload):
            split = JobSplit.decode(payload)
            return self._of_job(split.job)._as_records(split, task, template, keep)
        rows = FileSplit.decode(payload)
        self._check(rows.source)
        return read_split(rows, task, template, keep)

    def _of_job(self, job_id: str) -> "JobPayloads":
        """Return the payloads of a job whose results this one reads."""
        if self._depth >= MAX_DEPTH:
            raise PayloadError(f"its records are the results of results of more than {MAX_DEPTH} jobs")
        found = self._client.hget(JobKeys.of(job_id).job, "spec")
        if found is None:
            raise ModelError(ResultsLost.code, f"job {job_id}, whose results are the input, was deleted or has expired")
        try:
            spec = JobSpec.decode(found)
        except (ValueError, RecursionError) as error:
            raise PayloadError(f"job {job_id}, whose results are the input, cannot be read: {error}") from error
        if spec.id != job_id:
            raise PayloadError(f"job {job_id}, whose results are the input, has the id of another one")
        return JobPayloads(self._client, self._scripts, spec, self._may_open, depth=self._depth + 1)

    def _as_records(self, split: JobSplit, task: Task, template: Template | None, keep: Keep) -> list[Record]:
        """Return the results of a chunk as records of another job."""
        from common.payloads.job_results import records_of_results

        records = self.records_with_own(split.chunk)
        if records is None:
            raise ModelError(ResultsLost.code, f"records of job {split.job}, whose results are the input, are gone")
        outcomes = self.outcomes(split.chunk)
        rows = chunk_rows(records, outcomes)[: split.records]
        form = declared_output(self._spec)
        if form is not None:
            kind = form.arrow_type(next((row.output for row in rows if row.output is not None), None))
        else:
            kinds = (output_type(outcome) for outcome in outcomes if outcome is not None)
            kind = next((kind for kind in kinds if kind is not None), None)
        return records_of_results(rows, self._spec, split, task, template, keep, kind)

    def add_examples(self, part: str, number: int, payload: bytes) -> None:
        """Write training (`train`) or evaluation (`eval`) examples of a fine-tune job.

        Raises:
            NotSubmitting: the job was given up, cancelled or deleted meanwhile.
        """
        self._store.add_input(f"{part}:{number}", payload)

    def examples(self, part: str, number: int) -> bytes | None:
        """Return a payload of examples, None if there is none."""
        return self._store.input(f"{part}:{number}")

    def write_outcomes(self, chunk: int, version: Version, payload: bytes) -> None:
        """Write a chunk's outcomes under (round, lease number), unless the job has ended; they count once committed."""
        if self._parts is None:
            self._store.write_outcomes(outcome_name(chunk, version), payload)
            return
        if self._store.has_ended():  # a late attempt of a retry would remove `_SUCCESS` from a complete output
            return
        records = self.records_with_own(chunk)
        if records is None:
            raise PayloadError("its records are missing")
        found = self.outcomes(chunk)
        earlier = [outcomes for outcomes in found if outcomes is not None]
        if len(earlier) < len(found):
            raise WorkerError(ResultsLost.code, f"The part of chunk {chunk + 1} was removed while it was run again.")
        rows = chunk_rows(records, [*earlier, payload], arrays=True)
        self._parts.write_attempt(chunk, version, rows, output_type(payload))

    def delete_outcomes(self, chunk: int, version: Version) -> None:
        """Delete outcomes whose commit was refused."""
        if self._parts is None:
            self._store.delete_outcomes(outcome_name(chunk, version))
        else:
            self._parts.abort_attempt(chunk, version)

    def versions(self, chunk: int) -> list[Version]:
        """Return the version of every commit of a chunk, oldest first."""
        return decode_versions(self._client.hget(self._keys.commit_history, str(chunk)))

    def outcomes(self, chunk: int) -> list[bytes | None]:
        """Return the payloads of every commit of a chunk, oldest first, None for a lost one.

        Later ones replace the outcomes of earlier ones. A part holds those of all commits, so there is at most one.
        """
        versions = self.versions(chunk)
        if self._parts is not None:
            return [self._parts.outcomes(chunk, versions[-1])] if versions else []
        return self._store.outcomes([outcome_name(chunk, version) for version in versions])

    def lost(self, commits: Mapping[int, Sequence[Version]]) -> list[int]:
        """Return the chunks that lost outcomes; `commits` has the versions of each chunk's commits."""
        if self._parts is not None:
            last = {chunk: versions[-1] for chunk, versions in commits.items() if versions}
            return sorted(commits.keys() - self._parts.present(last))
        listed = self._store.outcome_names()

        def is_lost(chunk: int, versions: Sequence[Version]) -> bool:
            unseen = {outcome_name(chunk, version) for version in versions} - listed
            # A network filesystem may list old contents.
            return not versions or None in self._store.outcomes(sorted(unseen))

        return [chunk for chunk, versions in sorted(commits.items()) if is_lost(chunk, versions)]

    @property
    def location(self) -> str:
        """Where the outcomes are, for messages."""
        return self._spec.output.location if self._spec.output else self._spec.store or "Redis"

    @property
    def input_location(self) -> str:
        """Where the records are, for messages."""
        return self._spec.store or "Redis"

    @property
    def in_files(self) -> bool:
        """Whether the outcomes are in files: payloads or parts."""
        return self._spec.output is not None or self._spec.store is not None

    @property
    def parts(self) -> "OutputCommitter | None":
        """The parts that workers write, None if the producer fetches the outcomes."""
        return self._parts

    def _check(self, location: str) -> None:
        check_location_allowed(location, self._may_open)


def _open_parts(spec: JobSpec, output: Output) -> "OutputCommitter":
    from common.payloads.output_committer import OutputCommitter

    return OutputCommitter(spec, output)


def _own_name(chunk: int) -> str:
    return f"own:{chunk}"


def open_payloads(client: "redis.Redis", scripts: Scripts, spec: JobSpec, may_open: MayOpen) -> RedisPayloads:
    """Return the backend of the job's payloads.

    Raises:
        ModelError: `address_not_allowed`, the job names a store that this process may not open.
    """
    if spec.store is None:
        return RedisPayloads(client, scripts, spec.id)
    check_location_allowed(spec.store, may_open)
    return FilePayloads(client, scripts, spec.id, spec.store)


def check_location_allowed(location: str, may_open: MayOpen) -> None:
    """Check that this process may open a location that a job names.

    Raises:
        ModelError: `address_not_allowed`, it may not.
    """
    if not may_open(location):
        raise ModelError(
            "address_not_allowed",
            f"{location} is not under a shared location, so it may not be opened here. Set HUGQUEUE_SHARED (or "
            "HUGQUEUE_STORE_URL) for this command and for the workers to a directory or a URL above it.",
        )
