"""The producer: submits jobs and reads results; the Python API, the command line and the embedded Redis.

For programs: `from hugqueue import Client` (docs/python.md).
"""

from typing import TYPE_CHECKING

from hugqueue.packages import require_own

require_own("common")

if TYPE_CHECKING:
    from producer.client import Client
    from producer.job_handle import JobHandle
else:
    # A type checker must not see this function: it would take any name for one of this package.
    def __getattr__(name: str) -> object:
        """Import the client on first use, so that `producer --help` stays fast."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from producer import client
        from producer import job_handle as handle

        return client.Client if name == "Client" else handle.JobHandle


__all__ = ["Client", "JobHandle"]
