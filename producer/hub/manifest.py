"""The manifest of a split on the Hub: which chunks of which job each of its shards holds.

It is a file of the repository, `.hugqueue/SPLIT.json`, that changes in the same commit as the shards. So a push that
was cut off goes on after the last chunk that was committed, from any machine.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from common.errors import UsageError
from common.validation import checked


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of a split."""

    file: str  #: its path in the repository
    first: int  #: the first of its chunks
    end: int  #: the chunk after its last one
    records: int
    failed: int  #: records without an output
    round: int  #: the job's round when it was written: a retry may have replaced its failed records since
    version: int = 0  #: that of the columns when it was written


@dataclass(frozen=True, slots=True)
class Manifest:
    """The shards of one split, in order."""

    job: str
    split: str
    shards: tuple[Shard, ...] = ()
    committed_at: float = 0.0  #: when the last commit was made, in seconds since the epoch
    columns: Mapping[str, str] | None = None  #: the own columns of the shards and their types; None: those of the job
    version: int = 0  #: how often values widened them: shards of an earlier version are written again in the end

    @property
    def next_chunk(self) -> int:
        """The first chunk that no shard holds."""
        return self.shards[-1].end if self.shards else 0

    @property
    def records(self) -> int:
        """Records in all shards."""
        return sum(shard.records for shard in self.shards)

    @property
    def failed(self) -> int:
        """Records without an output in all shards."""
        return sum(shard.failed for shard in self.shards)

    def encode(self) -> str:
        """Return the JSON text that `decode` takes."""
        return json.dumps(asdict(self), indent=1) + "\n"


def manifest_path(split: str) -> str:
    """Return where the manifest of a split is in its repository: hidden, so that `datasets` takes it for no data."""
    return f".hugqueue/{split}.json"


def decode(text: str, name: str) -> Manifest:
    """Return the manifest of a JSON text; `name` is the file, for messages.

    Raises:
        UsageError: it is damaged.
    """
    try:
        found: Manifest = checked(json.loads(text), Manifest, "a manifest")
        _check_chunks(found)
    except ValueError as error:
        raise UsageError(f"{name} is damaged ({error}). Restore it from the history of the repository.") from error
    return found


def _check_chunks(manifest: Manifest) -> None:
    expected = 0
    for shard in manifest.shards:
        if shard.first != expected or shard.end <= shard.first:
            raise ValueError(f"{shard.file} holds chunks {shard.first} to {shard.end - 1}, expected from {expected}")
        expected = shard.end
