"""The directory of `-o DIR/`: parts that appear one by one and whole, then `_manifest.json` and `_SUCCESS`, once.

Outcomes are first written aside, under the name of their attempt; only after the ledger has taken the commit does the
file move to the part's own name. So a chunk that ran twice leaves one part, though no object store joins a transaction
of Redis, and whoever finishes the job can finish for those that died between the two.

The names are those of Hadoop's and Spark's committers, whose readers pass over what begins with `_`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import UsageError
from common.jobs import Job, Output
from common.payloads.codec import decode_records, output_type
from common.payloads.part_files import chunk_rows, decode_part, encode_part, part_name, part_schema
from common.records import Json
from common.results import ResultRow
from common.storage.storage import open_storage

SUCCESS, MANIFEST = "_SUCCESS", "_manifest.json"


class OutputCommitter:
    """The parts of one job. Every method raises `StorageError` when they cannot be written or read now."""

    def __init__(self, job_id: str, output: Output) -> None:
        self._storage = open_storage(output.address)
        self._format = output.format
        self._attempts = f"_attempts/{job_id}"

    def put(self, chunk: int, version: tuple[int, int], records: bytes, outcomes: list[bytes]) -> None:
        """Write a part aside.

        Args:
            chunk: the chunk.
            version: (round, serial) of the attempt.
            records: payload of the chunk's records.
            outcomes: payloads of its commits so far, the oldest first, and of this attempt.
        """
        rows = chunk_rows(decode_records(records), outcomes, arrays=True)
        kind = output_type(outcomes[-1])
        if version[0] > 0:  # a retry: what was finished is not, for now
            self._storage.remove(SUCCESS, MANIFEST)
        self._storage.write(self._attempt_name(chunk, version), encode_part(rows, kind, self._format))

    def write(self, chunk: int, rows: Sequence[ResultRow], kind: Any) -> None:
        """Write a part in its place, where nobody else writes; `kind` is the Arrow type of an output."""
        self._storage.write(part_name(chunk, self._format), encode_part(rows, kind, self._format))

    def drop(self, chunk: int, version: tuple[int, int]) -> None:
        """Take back a part whose commit was refused."""
        self._storage.remove(self._attempt_name(chunk, version))
        self._storage.prune(self._attempts)

    def forget(self) -> None:
        """Remove what is still aside."""
        self._storage.remove(*(f"{self._attempts}/{name}" for name in self._storage.names(self._attempts)))
        self._storage.prune(self._attempts)

    def place(self, chunk: int, version: tuple[int, int]) -> None:
        """Put a part where its readers look; its commit counts."""
        self._storage.move(self._attempt_name(chunk, version), part_name(chunk, self._format))

    def outcomes(self, chunk: int, version: tuple[int, int]) -> bytes | None:
        """Return the outcomes of a chunk as a payload, None if they are gone; `version` is that of its last commit."""
        for name in (self._attempt_name(chunk, version), part_name(chunk, self._format)):
            data = self._storage.read(name)
            if data is not None:
                return decode_part(data, self._format)
        return None

    def present(self, versions: Mapping[int, tuple[int, int]]) -> set[int]:
        """Return the chunks whose part is there, aside or in its place; `versions` are those of their last commits."""
        listed = {f"{self._attempts}/{name}" for name in self._storage.names(self._attempts)}
        listed.update(self._storage.names())

        def is_there(chunk: int, version: tuple[int, int]) -> bool:
            names = (self._attempt_name(chunk, version), part_name(chunk, self._format))
            # A network file system may show an old list.
            return not listed.isdisjoint(names) or any(self._storage.read(name) is not None for name in names)

        return {chunk for chunk, version in versions.items() if is_there(chunk, version)}

    def commit_pending(self, versions: Mapping[int, tuple[int, int]]) -> None:
        """Place what is still aside and counts; `versions` are those of each chunk's last commit."""
        for name in self._storage.names(self._attempts):
            chunk, version = _parse_attempt(name)
            counts = versions.get(chunk)
            if version == counts:
                self.place(chunk, version)
            elif counts is None or version[0] <= counts[0]:
                # One of a later round may count by now: whoever does this may have slept since it was told `versions`.
                self._storage.remove(f"{self._attempts}/{name}")

    def close(self, job: Job, failed: Mapping[int, int]) -> None:
        """Say that all parts are in their place; `failed` has for each chunk how many of its records failed."""
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


def check_output_location(address: str, *, begun: bool = False) -> None:
    """Check that files can be written at an address, and (unless its job is `begun`) that no output is there.

    Raises:
        UsageError: there is one.
        StorageError: they cannot, or it cannot be looked at.
    """
    storage = open_storage(address)
    storage.check()
    if begun:
        return
    found = [name for name in storage.names() if name.startswith("part-") or name in (SUCCESS, MANIFEST)]
    if found:
        raise UsageError(f"{address} holds an output already ({found[0]}). Name another place, or remove it first.")


def _parse_attempt(name: str) -> tuple[int, tuple[int, int]]:
    try:
        chunk, round_, serial, _ = name.split(".")
        return int(chunk), (int(round_), int(serial))
    except ValueError:
        return -1, (-1, -1)  # not one of ours: no chunk has that number


def _describe_job(job: Job) -> dict[str, Json]:
    shown = job.as_dict()
    wanted = ("id", "name", "task", "model", "revision", "params", "inputs", "created_at", "ran_on")
    counts = {name: shown["counts"][name] for name in ("records", "succeeded", "failed", "truncated")}
    return {**{name: shown[name] for name in wanted}, "counts": counts}
