"""Uploading the results of a job to a split of a dataset on the Hub, while the job runs.

Results become shards (`producer.hub.shards`), which are uploaded as soon as they are complete and added by grouped
commits, at most one a minute: the Hub limits commits, not files. Each commit also writes the manifest and the card.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from common.errors import HugqueueError, ResultsLost
from common.jobs import Job, JobStatus
from common.results import LOST, ResultRow
from common.settings import Settings
from producer.hub.checks import open_repository, prepare_hub_output, read_manifest
from producer.hub.dataset_card import CARD, make_card
from producer.hub.manifest import Shard, manifest_path
from producer.hub.repository import Head, HubRepository, added_file
from producer.hub.shards import Columns, ShardFile, write_shards
from producer.outputs.hub_target import HubOutput

OnWait = Callable[[Job], None]
Notify = Callable[[str], None]

#: The size limit of a shard that replaces another one.
_NO_LIMIT = 1 << 62


class JobResults(Protocol):
    """What an upload needs of a job."""

    @property
    def state(self) -> Job:
        """The job as last read."""

    def stream_chunks(self, first: int, on_wait: OnWait) -> Iterator[list[ResultRow]]:
        """Yield the rows of each chunk from `first`, in order, as soon as it is done, until the job ends."""

    def output_type(self) -> Any:
        """Return the Arrow type of the outputs; None if they are JSON."""


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What an upload leaves in the repository."""

    url: str
    records: int
    shards: int
    complete: bool  #: whether all records of the job are there


@dataclass(frozen=True, slots=True)
class _Pending:
    """A shard that was uploaded and belongs to no commit yet."""

    shard: Shard
    path: Path  #: on this machine, until its commit
    operation: Any  #: of its commit


def upload_results(
    results: JobResults, target: HubOutput, settings: Settings, on_wait: OnWait, notify: Notify
) -> Uploaded:
    """Upload the results of a job as its chunks finish, in input order; return when it is finished and all are there.

    What an earlier call has committed is kept: this one goes on after it. A job that ended early is uploaded up to the
    first chunk that was not run; after a `retry`, shards with failed records are written again.

    Args:
        results: the job's.
        target: where they go; the repository is created if it does not exist.
        settings: those of the environment.
        on_wait: called with the job's state while there is nothing to do.
        notify: called with a sentence for each commit.

    Raises:
        UsageError: as for `prepare_hub_output`.
        ResultsLost: results that the job had are missing; those before them were uploaded.
        HugqueueError: the Hub fails for long.
    """
    prepare_hub_output(target, settings, results.state.id)
    repository = open_repository(target, settings)
    with tempfile.TemporaryDirectory(prefix="hugqueue-hub-") as directory:
        return _Upload(results, target, repository, on_wait, notify).run(Path(directory), settings.hub_shard_bytes)


class _Upload:
    """One upload: `_manifest` is what the repository holds, `_pending` what the next commit adds."""

    def __init__(
        self, results: JobResults, target: HubOutput, repository: HubRepository, on_wait: OnWait, notify: Notify
    ) -> None:
        self._results, self._target, self._repository = results, target, repository
        self._on_wait, self._notify = on_wait, notify
        head = repository.head()
        self._manifest = read_manifest(repository, head, target, results.state.id)
        self._files = head.files
        self._pending: dict[str, _Pending] = {}  #: by the shard's path in the repository
        known = self._manifest
        self._columns = Columns(results.state.spec, results.output_type, known.columns, known.version)
        if head.public and not target.public:
            notify(f"Warning: dataset {target.repo} is public already.")
        self._rounds: dict[int, int] = {}  #: of each chunk that was read: the job's round at the time
        repository.note_commit(self._manifest.committed_at)

    def run(self, directory: Path, shard_bytes: int) -> Uploaded:
        """Upload what is missing, by way of files in a directory."""
        if self._manifest.shards:
            self._notify(
                f"{self._target} holds {self._manifest.records:,} records of job {self._manifest.job} already."
            )
        for shard in self._manifest.shards:
            if self._is_stale(shard):
                self._rewrite(shard, directory)
        number = len(self._manifest.shards)
        for file in write_shards(self._chunks(self._manifest.next_chunk), self._columns, directory, shard_bytes):
            self._add(file, self._target.shard(number))
            number += 1
        for shard in self._shards():
            if shard.version != self._columns.version or self._was_retried(shard):
                self._rewrite(shard, directory)
        if self._pending:
            self._wait()
            self._commit()
        return self._finish()

    def _is_stale(self, shard: Shard) -> bool:
        """Whether a shard is to be written again: a retry replaced records in it, or it is gone."""
        return self._was_retried(shard) or shard.file not in self._files

    def _was_retried(self, shard: Shard) -> bool:
        return shard.failed > 0 and shard.round < self._results.state.round

    def _rewrite(self, shard: Shard, directory: Path) -> None:
        # All of its values are read before it is written: a shard that they widen would end there.
        for _, rows in islice(self._chunks(shard.first), shard.end - shard.first):
            self._columns.build(rows)
        chunks = islice(self._chunks(shard.first), shard.end - shard.first)
        for file in write_shards(chunks, self._columns, directory, _NO_LIMIT):
            if file.end == shard.end:
                self._add(file, shard.file)
                return
            file.path.unlink()
        job = self._results.state.id
        raise ResultsLost(
            f"results of job {job} that are in {shard.file} are gone. Run `producer retry {job}`, then this "
            "command again."
        )

    def _shards(self) -> tuple[Shard, ...]:
        """Return the shards that the repository holds or will hold after the next commit, in order."""
        found = {shard.file: shard for shard in self._manifest.shards}
        return tuple((found | {path: pending.shard for path, pending in self._pending.items()}).values())

    def _chunks(self, first: int) -> Iterator[tuple[int, list[ResultRow]]]:
        """Yield the numbers and rows of chunks from `first` up to the first that was not run."""
        for number, rows in enumerate(self._results.stream_chunks(first, self._tick), first):
            if any(row.outcome is LOST for row in rows):
                job = self._results.state.id
                raise ResultsLost(
                    f"results of chunk {number} of job {job} are gone. Run `producer retry {job}`, then this command "
                    "again."
                )
            if not rows or any(row.outcome is None for row in rows):
                return
            self._rounds[number] = self._results.state.round
            yield number, rows

    def _tick(self, job: Job) -> None:
        self._on_wait(job)
        self._commit_if_due()

    def _add(self, file: ShardFile, path: str) -> None:
        operation = self._repository.preupload(path, file.path)
        round = min(self._rounds[number] for number in range(file.first, file.end))
        shard = Shard(path, file.first, file.end, file.records, file.failed, round, file.version)
        self._pending[path] = _Pending(shard, file.path, operation)
        self._commit_if_due()

    def _commit_if_due(self) -> None:
        if self._pending and not self._repository.seconds_to_next_commit():
            self._commit()

    def _wait(self) -> None:
        if seconds := self._repository.seconds_to_next_commit():
            self._notify(f"The last commit follows in {seconds:.0f} s: one a minute is what the Hub bears.")
            time.sleep(seconds)

    def _commit(self) -> None:
        """Add the pending shards in one commit."""
        columns, job = self._columns, self._results.state
        manifest = replace(self._manifest, shards=self._shards(), columns=columns.types, version=columns.version)

        def plan(head: Head) -> list[Any] | None:
            there = read_manifest(self._repository, head, self._target, job.id)
            if there.shards == manifest.shards and self._pending.keys() <= head.files:
                return None  # an earlier attempt succeeded, and its answer was lost
            if there.shards != self._manifest.shards:
                raise HugqueueError(f"Another command writes job {job.id} to {self._target}; this one stops.")
            card = make_card(self._repository.read(CARD, head), sorted(self._files), self._target, job, manifest)
            text = replace(manifest, committed_at=time.time()).encode()
            texts = [added_file(manifest_path(self._target.split), text), added_file(CARD, card)]
            return [*(pending.operation for pending in self._pending.values()), *texts]

        done = f"{manifest.records:,} of {job.records or 0:,} records"
        self._repository.commit(plan, f"Add results of job {job.id}: {done}")
        for pending in self._pending.values():
            pending.path.unlink(missing_ok=True)
        self._manifest, self._pending = manifest, {}
        self._notify(f"{done} are in {self._target}")

    def _finish(self) -> Uploaded:
        """Check that everything is there."""
        job, manifest = self._results.state, self._manifest
        if missing := {shard.file for shard in manifest.shards} - self._repository.head().files:
            raise HugqueueError(
                f"{self._target}: {min(missing)} is not in the repository after its commit. Is it in its .gitignore?"
            )
        complete = job.status is JobStatus.COMPLETED
        if complete and manifest.records != job.records:
            raise ResultsLost(
                f"{self._target} has {manifest.records:,} of {job.records or 0:,} records of job {job.id}."
            )
        return Uploaded(self._repository.url, manifest.records, len(manifest.shards), complete)
