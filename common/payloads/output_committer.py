"""Output committer: the part files of `-o DIR/`, then `_manifest.json` and `_SUCCESS`, each complete and once.

An attempt writes its part to `_attempts/`. After the ledger has accepted its commit, the file moves to the part's own
name. So a chunk that ran twice leaves one part, although no object store joins a transaction of Redis, and another
process can move the parts of one that died in between.

The file names are those of Hadoop's and Spark's committers, whose readers ignore names that begin with `_`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import UsageError
from common.jobs import Job, JobSpec, Output
from common.payloads.part_files import decode_part, encode_part, part_name, part_schema
from common.payloads.result_tables import ResultTable
from common.records import Json
from common.results import ResultLayout, ResultRow
from common.storage.storage import open_storage
from common.tasks import declared_output

SUCCESS, MANIFEST = "_SUCCESS", "_manifest.json"


class OutputCommitter:
    """The parts of one job. Every method raises `StorageError` if they cannot be written or read now."""

    def __init__(self, spec: JobSpec, output: Output) -> None:
        self._spec = spec
        self._storage = open_storage(output.location)
        self._format = output.format
        self._form = declared_output(spec)
        self._attempts = f"_attempts/{spec.id}"

    def write_attempt(self, chunk: int, version: tuple[int, int], rows: Sequence[ResultRow], kind: Any) -> None:
        """Write the part of an attempt.

        Args:
            chunk: the chunk.
            version: (round, lease number) of the attempt.
            rows: of the chunk, after this attempt.
            kind: the Arrow type of an output, None for JSON text.
        """
        if version[0] > 0:  # a retry: the output is no longer complete
            self._storage.remove(SUCCESS, MANIFEST)
        self._storage.write(self._attempt_name(chunk, version), self._encode(rows, kind))

    def write_part(self, chunk: int, rows: Sequence[ResultRow], kind: Any) -> None:
        """Write a part under its own name, if no other process does; `kind` is the Arrow type of an output."""
        self._storage.write(part_name(chunk, self._format), self._encode(rows, kind))

    def _encode(self, rows: Sequence[ResultRow], kind: Any) -> bytes:
        return encode_part(rows, ResultTable.of(self._spec, kind), self._format)

    def abort_attempt(self, chunk: int, version: tuple[int, int]) -> None:
        """Delete the part of an attempt whose commit was refused."""
        self._storage.remove(self._attempt_name(chunk, version))
        self._storage.prune(self._attempts)

    def abort_job(self) -> None:
        """Delete the parts of all attempts."""
        self._storage.remove(*(f"{self._attempts}/{name}" for name in self._storage.names(self._attempts)))
        self._storage.prune(self._attempts)

    def commit_part(self, chunk: int, version: tuple[int, int]) -> None:
        """Move the part of a committed attempt to its own name."""
        self._storage.move(self._attempt_name(chunk, version), part_name(chunk, self._format))

    def outcomes(self, chunk: int, version: tuple[int, int]) -> bytes | None:
        """Return the outcomes of a chunk as a payload, None if they are lost; `version` is that of its last commit."""
        for name in (self._attempt_name(chunk, version), part_name(chunk, self._format)):
            data = self._storage.read(name)
            if data is not None:
                return decode_part(data, self._format, ResultLayout.of(self._spec), self._form)
        return None

    def present(self, versions: Mapping[int, tuple[int, int]]) -> set[int]:
        """Return the chunks whose part exists, moved or not; `versions` are those of their last commits."""
        listed = {f"{self._attempts}/{name}" for name in self._storage.names(self._attempts)}
        listed.update(self._storage.names())

        def is_there(chunk: int, version: tuple[int, int]) -> bool:
            names = (self._attempt_name(chunk, version), part_name(chunk, self._format))
            # A network filesystem may list old contents.
            return not listed.isdisjoint(names) or any(self._storage.read(name) is not None for name in names)

        return {chunk for chunk, version in versions.items() if is_there(chunk, version)}

    def commit_pending(self, versions: Mapping[int, tuple[int, int]]) -> None:
        """Move what is still in `_attempts/` and counts; `versions` are those of each chunk's last commit."""
        for name in self._storage.names(self._attempts):
            chunk, version = _parse_attempt(name)
            counts = versions.get(chunk)
            if version == counts:
                self.commit_part(chunk, version)
            elif counts is None or version[0] <= counts[0]:
                # Not one of a later round: it may count by now, if this process slept since it read `versions`.
                self._storage.remove(f"{self._attempts}/{name}")

    def commit_job(self, job: Job, failed: Mapping[int, int]) -> None:
        """Mark the output as complete; `failed` has the number of failed records of each chunk."""
        parts = [{"name": part_name(chunk, self._format), "failed": count} for chunk, count in failed.items()]
        manifest = {**_describe_job(job), "schema": self._schema(), "parts": parts}
        self._storage.write(MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=1).encode())
        self._storage.prune(self._attempts)
        self._storage.write(SUCCESS, b"")

    def _schema(self) -> Json:
        data = self._storage.read(part_name(0, self._format))
        return part_schema(data, self._format) if data is not None else None

    def _attempt_name(self, chunk: int, version: tuple[int, int]) -> str:
        return f"{self._attempts}/{chunk}.{version[0]}.{version[1]}.{self._format}"


def check_output_location(location: str, *, begun: bool = False) -> None:
    """Check that files can be written to a location, and (unless its job has `begun`) that it holds no output.

    Raises:
        UsageError: it holds one.
        StorageError: it cannot be written or read.
    """
    storage = open_storage(location)
    storage.check()
    if begun:
        return
    found = [name for name in storage.names() if name.startswith("part-") or name in (SUCCESS, MANIFEST)]
    if found:
        raise UsageError(f"{location} already holds an output ({found[0]}). Name another location, or remove it.")


def _parse_attempt(name: str) -> tuple[int, tuple[int, int]]:
    try:
        chunk, round_, number, _ = name.split(".")
        return int(chunk), (int(round_), int(number))
    except ValueError:
        return -1, (-1, -1)  # not an attempt: no chunk has that number


def _describe_job(job: Job) -> dict[str, Json]:
    shown = job.as_dict()
    wanted = ("id", "name", "task", "model", "revision", "params", "inputs", "created_at", "ran_on", "ranges")
    counts = {name: shown["counts"][name] for name in ("records", "succeeded", "failed", "truncated")}
    return {**{name: shown[name] for name in wanted}, "counts": counts}
