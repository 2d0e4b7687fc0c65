"""hugqueue for programs: `from hugqueue import Client` (docs/python.md), and the errors that it raises.

`celery -A hugqueue flower` is Flower on its queue.
"""

from typing import TYPE_CHECKING

from hugqueue.packages import require_own

require_own("common", "producer")

from common.errors import (  # noqa: E402 - it must be ours
    CodedError,
    HugqueueError,
    JobFailed,
    MissingStorageLibrary,
    ModelError,
    NotSubmitting,
    PayloadError,
    RecordError,
    ResultsLost,
    StorageError,
    StoreUnavailable,
    UnknownJob,
    UsageError,
    WaitTimedOut,
    WorkerError,
)

if TYPE_CHECKING:
    from producer import Client, JobHandle
else:
    # A type checker must not see this function: it would accept any name.
    def __getattr__(name: str) -> object:
        """Import the client on first use: `celery -A hugqueue` and the commands do not need it."""
        if name not in ("Client", "JobHandle"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import producer

        return getattr(producer, name)


__all__ = [
    "Client",
    "CodedError",
    "HugqueueError",
    "JobFailed",
    "JobHandle",
    "MissingStorageLibrary",
    "ModelError",
    "NotSubmitting",
    "PayloadError",
    "RecordError",
    "ResultsLost",
    "StorageError",
    "StoreUnavailable",
    "UnknownJob",
    "UsageError",
    "WaitTimedOut",
    "WorkerError",
]
