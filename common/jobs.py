"""A job as the store knows it: what was submitted, where it stands, how far it is."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from common.records import MAX_TIMESTAMP, Counts, Failure, JobSpec, JobStatus, Json, one_line


@dataclass(frozen=True, slots=True)
class Written:
    """How far a job is submitted."""

    records: int = 0
    chunks: int = 0
    digest: str = ""  #: of these records

    def fields(self) -> Mapping[str, str | int]:
        """Return it as fields of the job's hash."""
        return {
            "written_records": self.records,
            "written_chunks": self.chunks,
            "written_digest": self.digest,
        }


@dataclass(frozen=True, slots=True)
class Job:
    """The state of one job at one moment. Times are seconds since the epoch, by Redis's clock."""

    spec: JobSpec
    status: JobStatus
    chunks: int | None = None  #: None until the job was accepted
    records: int | None = None
    round: int = 0  #: raised by each retry
    counts: Counts = field(default_factory=Counts)
    sealed_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    failure: Failure | None = None  #: why the job failed
    stage: str = ""  #: what a worker is busy with before records can run, as loading a model
    run_info: Mapping[str, Json] = field(default_factory=dict)  #: what ran: device, dtype, versions, model commit
    progress: Mapping[str, Json] = field(default_factory=dict)  #: of a fine-tune job: step, loss, metrics, notes

    @property
    def id(self) -> str:
        """The job's id."""
        return self.spec.id

    def as_dict(self) -> dict[str, Json]:
        """Return what `--json` shows."""
        spec = self.spec
        return {
            "id": spec.id,
            "kind": spec.kind,
            "name": spec.name,
            "labels": dict(spec.labels),
            "task": spec.task,
            "model": spec.model,
            "revision": spec.revision,
            "params": dict(spec.params),
            "training": dict(spec.training) if spec.training is not None else None,
            "queue": spec.queue,
            "priority": spec.priority,
            "inputs": list(spec.inputs),
            "limit": spec.limit,
            "status": str(self.status),
            "stage": self.stage or None,
            "counts": {
                "records": self.records,
                "done": self.counts.done,
                "succeeded": self.counts.succeeded,
                "failed": self.counts.failed,
                "truncated": self.counts.truncated,
            },
            "chunks": self.chunks,
            "round": self.round,
            "created_at": iso_time(spec.created_at),
            "started_at": iso_time(self.started_at),
            "finished_at": iso_time(self.finished_at),
            "error": self.failure.as_dict() if self.failure else None,
            "ran_on": dict(self.run_info) or None,
            "progress": dict(self.progress) or None,
        }


def iso_time(seconds: float | None) -> str | None:
    """Return a time since the epoch as people and programs read it: ISO 8601, in UTC."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


#: Statuses that only an accepted job has.
_ACCEPTED = (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.COMPLETED)


def decode_job(raw: Mapping[bytes, bytes]) -> Job:
    """Return the job of its hash in the store.

    Raises:
        ValueError: the hash does not hold a job.
    """
    text = {key.decode(): value.decode() for key, value in raw.items()}
    missing = [name for name in ("spec", "status", "round", "ttl_ms") if not text.get(name)]
    if missing or (text["status"] in _ACCEPTED and not text.get("chunks")):
        raise ValueError(f"a job's hash without {', '.join(missing) or 'chunks'}")
    int(text["ttl_ms"])  # the scripts count on it
    run_info: Any = json.loads(text.get("facts") or "{}")
    progress: Any = json.loads(text.get("progress") or "{}")
    code = text.get("failure_code")
    return Job(
        spec=JobSpec.decode(text["spec"]),
        status=JobStatus(text["status"]),
        chunks=_maybe_int(text.get("chunks")),
        records=_maybe_int(text.get("records")),
        round=int(text.get("round", 0)),
        counts=Counts(*(int(text.get(name, 0)) for name in ("succeeded", "failed", "truncated"))),
        sealed_at=_maybe_float(text.get("sealed_at")),
        started_at=_maybe_float(text.get("started_at")),
        finished_at=_maybe_float(text.get("finished_at")),
        failure=Failure(one_line(code, 80), one_line(text.get("failure_message", ""))) if code else None,
        stage=one_line(text.get("stage", "")),
        run_info=run_info if isinstance(run_info, dict) else {},
        progress=progress if isinstance(progress, dict) else {},
    )


def _maybe_int(text: str | None) -> int | None:
    return int(text) if text else None


def _maybe_float(text: str | None) -> float | None:
    value = float(text) if text else None
    if value is not None and not 0 <= value < MAX_TIMESTAMP:
        raise ValueError(f"a job's time cannot be {value}")
    return value
