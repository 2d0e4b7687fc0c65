"""What is said of a job that did not go well: why, summed by code, and whether running it again can help."""

from collections import Counter

from common.jobs import Job
from producer.job_handle import JobHandle

#: Codes of records that are themselves at fault, or of parameters that stay as they are: they fail again.
PERMANENT = frozenset(
    {
        "bad_audio",
        "bad_csv",
        "bad_encoding",
        "bad_image",
        "bad_json",
        "bad_param",
        "bad_request",
        "bad_text",
        "context_length_exceeded",
        "empty_text",
        "missing_field",
        "no_chat_template",
        "no_file",
        "no_mask",
        "too_large",
        "too_long",
        "too_many_tokens",
        "wrong_type",
    }
)
#: Failed records that are looked at: of more, the first ones say enough.
_MAX_COUNTED = 10_000


def count_failures(job: JobHandle) -> "Counter[str]":
    """Return how many of the first failed records have which code."""
    codes: Counter[str] = Counter()
    for row in job.failures():
        if row.error is not None:
            codes[row.error.code] += 1
        if codes.total() >= _MAX_COUNTED:
            break
    return codes


def describe_failures(job: Job, codes: "Counter[str]") -> str:
    """Return what is said of the failed records of a finished job: how many, why, and what can be done."""
    failed = job.counts.failed
    first = "" if codes.total() >= failed else f"of the first {codes.total():,}: "
    reasons = f" ({first}{', '.join(f'{code} {count:,}' for code, count in codes.most_common())})" if codes else ""
    text = f"{failed:,} of {job.records or 0:,} records failed{reasons}; `producer results {job.id} --failed` shows"
    if not codes or codes.keys() - PERMANENT:
        return f"{text} them, `producer retry {job.id}` runs them again."
    return f"{text} them. They would fail again: fix the input and submit it again."


def describe_unwritten(job: Job, name: str) -> str:
    """Return what is said of an output that is not written, as its job did not complete: why, and what can be done."""
    done = job.counts.done
    text = f"{name} is not written: the job is {job.status}, with {done:,} of {job.records or 0:,} records done."
    if done:
        text += f" `producer results {job.id} -o FILE` saves those."
    if job.failure is None or job.failure.code not in PERMANENT:
        text += f" `producer retry {job.id} -o {name}` runs the rest."
    return text
