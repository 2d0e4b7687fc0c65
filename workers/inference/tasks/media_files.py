"""Files of records: the bytes that came with a record, or a file at a location that workers share."""

from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import HugqueueError, RecordError
from common.records import Json
from common.storage.filesystem import open_stream
from common.storage.locations import is_shared


@dataclass(frozen=True, slots=True)
class SharedFiles:
    """The files that a worker reads itself: those under `HUGQUEUE_SHARED`, and nothing else."""

    locations: Sequence[str] = ()  #: directories and URLs
    max_bytes: int = 0  #: of one file

    def read(self, name: Json) -> bytes:
        """Return the contents of the file of that name.

        Raises:
            RecordError: `missing_file`, it is not under a shared location, and is not looked at; `no_file`, it cannot
                be read; `too_large`.
        """
        if not isinstance(name, str) or not is_shared(name, self.locations):
            raise RecordError(
                "missing_file",
                "The record came without its file, and this worker opens only files under its shared locations "
                "(HUGQUEUE_SHARED).",
            )
        try:
            with open_stream(name) as stream:
                blob = stream.read(self.max_bytes + 1)
        except (HugqueueError, OSError) as error:
            raise RecordError("no_file", f"{name} cannot be read: {error}"[:1000]) from error
        if len(blob) > self.max_bytes:
            raise RecordError(
                "too_large", f"{name} is longer than {self.max_bytes:,} bytes (HUGQUEUE_MAX_RECORD_BYTES)."
            )
        return blob
