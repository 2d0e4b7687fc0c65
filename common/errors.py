"""Errors that hugqueue raises on purpose.

```
HugqueueError                 exit status 1
├── UsageError                exit status 2: a wrong option, or input that cannot be read
├── StoreUnavailable          Redis cannot be reached, is full, or refuses a command
├── UnknownJob                no such job, or it has expired
├── NotSubmitting             a job that accepts no more chunks: abandoned, cancelled, or deleted
├── JobFailed                 a job that failed or was cancelled, when its results are needed
├── WaitTimedOut              a job that is not finished in time; also a `TimeoutError`
├── PayloadError              bytes that are not a valid payload
├── ResultsLost               outcomes of a job that no longer exist
├── ModelError                a model that is unavailable or cannot do the task; fails the job
├── WorkerError               a worker that cannot start or continue
│   └── StorageError          files that cannot be read or written now
│       └── MissingStorageLibrary   because a library is missing
└── RecordError               one record that cannot be processed; fails alone
```

Errors that end a record or a job have a `code`, one of those in `docs/errors.md`. Between processes they are a
`common.records.Failure` (code and message), never a pickled exception.
"""

import contextlib
from collections.abc import Iterator


class HugqueueError(Exception):
    """Base of all errors that hugqueue raises on purpose; the text is meant for users."""

    exit_status = 1


class Cancelled(Exception):
    """Raised out of work that was cancelled. Not a `HugqueueError`: nothing is wrong."""


class UsageError(HugqueueError):
    """Raised for a wrong option or input; the message says what was found and what is expected."""

    exit_status = 2


class StoreUnavailable(HugqueueError):
    """Raised when Redis cannot be reached, is full, or refuses a command."""


class UnknownJob(HugqueueError):
    """Raised when there is no job with that id, or no longer."""

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"There is no job {job_id!r}. `producer jobs` lists all jobs; "
            "finished jobs are deleted when their time to live is over."
        )


class WaitTimedOut(HugqueueError, TimeoutError):
    """Raised when a job is not finished within a timeout; the job continues."""


class JobFailed(HugqueueError):
    """Raised when the results of a job are needed that failed or was cancelled."""

    def __init__(self, job_id: str, message: str, code: str | None = None) -> None:
        super().__init__(f"Job {job_id} {message}")
        self.job_id = job_id
        self.code = code  #: why it failed, one of those in `docs/errors.md`; None if it was cancelled


class NotSubmitting(HugqueueError):
    """Raised when a chunk is submitted to a job that was abandoned, cancelled, or deleted."""

    def __init__(self, job_id: str, status: str) -> None:
        found = {
            "failed": "workers abandoned it while this command was suspended or could not reach Redis",
            "unknown": "it was abandoned or deleted",
        }.get(status, f"it was stopped and is {status}")
        super().__init__(
            f"Job {job_id} cannot be submitted completely: {found}. Nothing of it was run; submit it again."
        )


class PayloadError(HugqueueError):
    """Raised when bytes are not a payload that this release can read."""


class ResultsLost(HugqueueError):
    """Raised at the end of reading results if some are missing, after all others were returned."""

    code = "results_lost"

    def __init__(self, message: str) -> None:
        super().__init__(f"{self.code}: {message}")


class CodedError(HugqueueError):
    """Base of errors that pass between processes as a code and a message."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class ModelError(CodedError):
    """Raised when a model is unavailable, not allowed, or cannot do the task; fails the job."""


class WorkerError(CodedError):
    """Raised when a worker cannot start or continue, for a reason other than the job."""


class StorageError(WorkerError):
    """Raised when files cannot be read or written now; the worker retries its chunk."""

    def __init__(self, message: str) -> None:
        super().__init__(code="storage_fails", message=message)


class MissingStorageLibrary(StorageError):
    """Raised when a library for a kind of URL is missing; another worker may have it."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = "missing_library"


class RecordError(CodedError):
    """Raised when one record cannot be processed; it fails alone, with this code."""


@contextlib.contextmanager
def path_errors(subject: str) -> Iterator[None]:
    """Turn system errors about a path that a user named, such as a name too long, into a `UsageError`.

    `pathlib` raises these even from `is_dir`, and a `RuntimeError` for a loop of links or an unknown user.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(f"{subject}: {error.strerror or error}.") from error
    except RuntimeError as error:
        raise UsageError(f"{subject}: {str(error).rstrip('.')}.") from error


def first_line(error: BaseException) -> str:
    """Return the first non-empty line of an error's text, or the name of its class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:500]
