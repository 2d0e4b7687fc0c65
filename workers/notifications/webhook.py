"""The content of a notification: its JSON, and its headers with the signatures of the Standard Webhooks scheme."""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from common.distribution import installed_version
from common.jobs import Job, JobStatus, iso_time
from common.notifications import secret_bytes
from common.records import Json


def webhook_id(job: Job) -> str:
    """Return the id of the notification of a job's latest end: the same for each attempt, another after a retry."""
    return f"{job.id}-{int((job.finished_at or 0) * 1000)}"


def webhook_body(job: Job) -> bytes:
    """Return the JSON of the notification of a job's latest end: the same for each attempt."""
    message = {"type": f"job.{job.status}", "timestamp": iso_time(job.finished_at), "data": _describe(job)}
    return json.dumps(message, separators=(",", ":")).encode()


def _describe(job: Job) -> dict[str, Json]:
    known = job.as_dict()
    spec = job.spec
    names = ("id", "kind", "name", "labels", "task", "model", "revision")
    return {
        "job": {name: known[name] for name in names},
        "status": known["status"],
        "counts": known["counts"],
        "failure": known["error"],
        "round": job.round,
        "created_at": known["created_at"],
        "started_at": known["started_at"],
        "finished_at": known["finished_at"],
        "results": {
            "command": f"producer results {job.id}",
            "output": asdict(spec.output) if spec.output else None,
            "model": f"job:{job.id}" if spec.training is not None and job.status is JobStatus.COMPLETED else None,
        },
    }


def webhook_headers(id_: str, body: bytes, now: float, secrets: Sequence[str]) -> Mapping[str, str]:
    """Return the headers of an attempt.

    Args:
        id_: of the notification.
        body: of the request.
        now: when it is sent, in seconds since the epoch.
        secrets: those that sign it; without any, it is not signed.
    """
    timestamp = str(int(now))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"hugqueue/{installed_version('hugqueue') or 'uninstalled'}",
        "Connection": "close",
        "webhook-id": id_,
        "webhook-timestamp": timestamp,
    }
    if secrets:
        signed = f"{id_}.{timestamp}.".encode() + body
        headers["webhook-signature"] = " ".join(_signature(secret_bytes(secret), signed) for secret in secrets)
    return headers


def _signature(key: bytes, signed: bytes) -> str:
    return f"v1,{base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()}"
