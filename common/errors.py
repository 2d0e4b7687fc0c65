"""Every error that hugqueue raises on purpose.

```
HugqueueError                 exit status 1
├── UsageError                exit status 2: a wrong option, or input that cannot be read
├── StoreUnavailable          Redis away, full, or refusing us
├── UnknownJob                no such job (or its time to live is over)
├── NotSubmitting             a job that cannot be written to any more: given up, cancelled, or forgotten
├── JobFailed                 a job that did not complete, where a program counts on its results
├── WaitTimedOut              a job that is not finished within the time given; a `TimeoutError` too
├── PayloadError              bytes from the store that are not a payload of ours
├── ResultsLost               outcomes that a job once had and that are gone
├── ModelError                a model that cannot be had, or cannot do the task: fails its job
├── WorkerError               a worker that cannot start or go on
│   └── StorageError          files at an address that cannot be read or written
│       └── NoSuchStorage     for want of a library
└── RecordError               one record that cannot be done: fails alone
```

Errors that end a record or a job carry a `code`, one of the names in `docs/errors.md`; they cross the
wire as a `common.records.Failure` (code and message), never as a pickled exception.
"""

import contextlib
from collections.abc import Iterator


class HugqueueError(Exception):
    """Base of all errors raised on purpose; its text is fit for the user's eyes."""

    exit_status = 1


class Cancelled(Exception):
    """Raised out of work that was cancelled. Not a `HugqueueError`: nothing is wrong."""


class UsageError(HugqueueError):
    """Raised when an option or an input is wrong; names what was found and what was expected."""

    exit_status = 2


class StoreUnavailable(HugqueueError):
    """Raised when Redis is away, full, or refuses us."""


class UnknownJob(HugqueueError):
    """Raised when there is no job of that id, or no longer."""

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"There is no job {job_id!r}. `producer jobs` lists those there are; "
            "finished jobs are forgotten when their time to live is over."
        )


class WaitTimedOut(HugqueueError, TimeoutError):
    """Raised when a job is not finished within the time that was given for it; the job goes on."""


class JobFailed(HugqueueError):
    """Raised when a job failed as a whole or was cancelled, and a program counts on its results."""

    def __init__(self, job_id: str, message: str, code: str | None = None) -> None:
        super().__init__(f"Job {job_id} {message}")
        self.job_id = job_id
        self.code = code  #: why it failed, one of those in `docs/errors.md`; None where it was cancelled


class NotSubmitting(HugqueueError):
    """Raised when a chunk is submitted to a job that has ended: it was given up, cancelled, or forgotten."""

    def __init__(self, job_id: str, status: str) -> None:
        found = {
            "failed": "workers gave it up while this command stood still or could not reach Redis",
            "unknown": "it was given up or taken back, and is forgotten",
        }.get(status, f"it was stopped and is {status}")
        super().__init__(
            f"Job {job_id} cannot be submitted to its end: {found}. Nothing of it was run; submit it again."
        )


class PayloadError(HugqueueError):
    """Raised when bytes from the store are not a payload that this version understands."""


class ResultsLost(HugqueueError):
    """Raised at the end of reading results when some are missing; those that are there were given before."""

    code = "results_lost"

    def __init__(self, message: str) -> None:
        super().__init__(f"{self.code}: {message}")


class CodedError(HugqueueError):
    """Base of errors that cross the wire as a code and a message."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class ModelError(CodedError):
    """Raised when a model cannot be had, may not be used, or cannot do the task; it fails the job."""


class WorkerError(CodedError):
    """Raised when a worker cannot start or go on, for a reason that is not the job's."""


class StorageError(WorkerError):
    """Raised when files under an address cannot be read or written now; a worker tries its chunk again."""

    def __init__(self, message: str) -> None:
        super().__init__(code="storage_fails", message=message)


class NoSuchStorage(StorageError):
    """Raised when addresses of a kind cannot be opened here, for want of a library; another worker may have it."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = "missing_library"


class RecordError(CodedError):
    """Raised when one record cannot be done; it fails alone, with this code."""


@contextlib.contextmanager
def path_errors(subject: str) -> Iterator[None]:
    """Turn what the system says about a path that a user named into a `UsageError`: a name too long, no permission.

    `pathlib` raises these from questions such as `is_dir`, and a `RuntimeError` for links in a circle and for the home
    of an unknown user.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(f"{subject}: {error.strerror or error}.") from error
    except RuntimeError as error:
        raise UsageError(f"{subject}: {str(error).rstrip('.')}.") from error


def first_line(error: BaseException) -> str:
    """Return the first line of what a library's error says that says something, else the name of its class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:500]
