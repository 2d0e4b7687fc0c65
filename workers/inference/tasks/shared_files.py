"""Files that a worker reads by itself: those under what it was told is shared (`HUGQUEUE_SHARED`), nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import HugqueueError, RecordError
from common.records import Json
from common.storage.filesystem import open_stream
from common.storage.locations import is_shared


@dataclass(frozen=True, slots=True)
class SharedFiles:
    """The files that records may name without bringing them."""

    places: Sequence[str]  #: directories and addresses
    most_bytes: int  #: of one file

    def read(self, name: Json) -> bytes:
        """Return the file of that name.

        Raises:
            RecordError: `missing_file`, it lies elsewhere, and is not looked at; `no_file`, it cannot be read;
                `too_large`.
        """
        if not isinstance(name, str) or not is_shared(name, self.places):
            raise RecordError(
                "missing_file",
                "The record came without its file, and this worker opens only files under what it was started with "
                "(HUGQUEUE_SHARED).",
            )
        try:
            with open_stream(name) as stream:
                blob = stream.read(self.most_bytes + 1)
        except (HugqueueError, OSError) as error:
            raise RecordError("no_file", f"{name} cannot be read: {error}"[:1000]) from error
        if len(blob) > self.most_bytes:
            raise RecordError(
                "too_large", f"{name} is longer than {self.most_bytes:,} bytes (HUGQUEUE_MAX_RECORD_BYTES)."
            )
        return blob


NO_SHARED_FILES = SharedFiles((), 0)
