"""Hub targets: what `-o hf:ORG/NAME[:SPLIT]` and `-o hf://datasets/ORG/NAME[/FOLDER]` name."""

import re
from dataclasses import dataclass

from common.errors import UsageError
from common.models.references import is_hub_id

_EXPECTED = "expected hf:ORG/NAME, hf:ORG/NAME:SPLIT, or hf://datasets/ORG/NAME/FOLDER"
#: As `datasets` takes them.
_SPLIT = re.compile(r"\w+(\.\w+)*", re.ASCII)
_FOLDER = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)
_DEFAULT_SPLIT, _DEFAULT_FOLDER = "train", "data"
_DATASETS, _BUCKETS = "hf://datasets/", "hf://buckets/"


@dataclass(frozen=True, slots=True)
class HubOutput:
    """A split of a dataset on the Hub, which the producer writes with its own token."""

    repo: str  #: ORG/NAME
    split: str = _DEFAULT_SPLIT
    folder: str = _DEFAULT_FOLDER  #: of the shards, in the repository
    public: bool = False  #: whether a repository that is created is public

    def __str__(self) -> str:
        """Return its name, as `-o` takes it."""
        if self.folder != _DEFAULT_FOLDER:
            return f"{_DATASETS}{self.repo}/{self.folder}"
        return f"hf:{self.repo}" if self.split == _DEFAULT_SPLIT else f"hf:{self.repo}:{self.split}"

    def shard(self, number: int) -> str:
        """Return the path of a shard in the repository."""
        return f"{self.folder}/{self.split}-{number:05}.parquet"

    def owns(self, file: str) -> bool:
        """Whether a file of the repository would be one of its shards."""
        return file.startswith(f"{self.folder}/{self.split}-")

    @property
    def pattern(self) -> str:
        """The pattern of all its shards, for the card."""
        return f"{self.folder}/{self.split}-*"


def is_hub_output(name: str) -> bool:
    """Whether `-o` names a dataset on the Hub; a bucket is a directory at a URL, without commits."""
    return name.startswith("hf:") and not name.startswith(_BUCKETS)


def parse_hub_output(name: str, *, public: bool = False) -> HubOutput:
    """Return the target of `-o hf:...`.

    Raises:
        UsageError: it is not the name of a dataset with a split or a folder.
    """
    if name.startswith(_DATASETS):
        org, _, rest = name.removeprefix(_DATASETS).rstrip("/").partition("/")
        repo_name, _, folder = rest.partition("/")
        found = HubOutput(f"{org}/{repo_name}", folder=folder or _DEFAULT_FOLDER, public=public)
    elif name.startswith("hf://"):
        raise UsageError(f"-o {name}: results are written to datasets and buckets on the Hub; {_EXPECTED}.")
    else:
        repo, _, split = name.removeprefix("hf:").partition(":")
        found = HubOutput(repo, split or _DEFAULT_SPLIT, public=public)
        if name.endswith(":"):
            raise UsageError(f"-o {name}: the name of the split is empty; {_EXPECTED}.")
    if found.repo.count("/") != 1 or not is_hub_id(found.repo):
        raise UsageError(f"-o {name} names no dataset on the Hub: {_EXPECTED}.")
    if not _SPLIT.fullmatch(found.split):
        raise UsageError(f"-o {name}: a split is named by letters, digits and _, found {found.split!r}; {_EXPECTED}.")
    if not _FOLDER.fullmatch(found.folder) or found.folder.endswith((".parquet", ".jsonl", ".csv", ".npy")):
        raise UsageError(f"-o {name}: expected the name of a folder, found {found.folder!r}; {_EXPECTED}.")
    return found
