"""Claims: which job an idempotency key stands for, and which producer submits it at present.

A key leads to a job by one more key in Redis, which lives as long as the job. A producer has a token; whoever finds the
job's producer silent writes its own token there and goes on where that one stopped. What is written is noted with each
chunk in the same step, so that a producer may die at any moment, and one that was only asleep finds itself replaced.
"""

import secrets
from dataclasses import dataclass, field

import redis

from common.jobs import JobSpec, Written
from common.redis.keys import JobKeys, idempotency
from common.redis.schema import write_schema
from common.redis.scripts import Scripts


@dataclass(frozen=True, slots=True)
class Claim:
    """What a producer says of itself and of the job that it is about to submit."""

    key: str  #: the idempotency key, as its user wrote it
    head: str  #: digest of the first records
    producer: str = field(default_factory=lambda: secrets.token_hex(8))  #: token


class IdempotencyKeys:
    """The steps of submitting under an idempotency key, each of them atomic."""

    def __init__(self, client: "redis.Redis", result_ttl: float) -> None:
        self._client = client
        self._scripts = Scripts(client)
        self._ttl_ms = int(result_ttl * 1000)

    def begin(self, spec: JobSpec, claim: Claim) -> str:
        """Begin the job, unless the key stands for one already; return the id of the one it stands for."""
        write_schema(self._client)
        arguments = (spec.encode(), self._ttl_ms, spec.created_at, claim.producer, claim.head)
        return str(self._scripts.run("claim", spec.id, idempotency(claim.key), *arguments).decode())

    def head(self, job_id: str) -> str:
        """Return the digest of the first records that the job was begun with."""
        return (self._client.hget(JobKeys.of(job_id).job, "head") or b"").decode(errors="replace")

    def take(self, job_id: str, claim: Claim, silence: float) -> Written | str:
        """Become the one who submits the job, if nobody has for `silence` seconds.

        Returns:
            What is written of it; or why not: `busy`, `accepted` (or over), `unknown`.
        """
        word, *written = self._scripts.run("take", job_id, claim.producer, silence)
        if word != b"taken":
            return str(word.decode())
        return Written(int(written[0]), int(written[1]), written[2].decode())

    def release(self, job_id: str, claim: Claim) -> None:
        """Let go of the job: the next one with the key goes on at once."""
        self._scripts.run("release", job_id, claim.producer)
