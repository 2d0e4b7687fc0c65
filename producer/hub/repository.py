"""A repository on the Hub: checks before any work, and commits that another one between does not break."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from common.distribution import install_command, installed_version, missing_libraries
from common.errors import HugqueueError, UsageError
from producer.hub.retries import refusal, status, with_retries

#: Roles in an organization that may create repositories.
_WRITING_ROLES = ("admin", "write", "contributor")


@dataclass(frozen=True, slots=True)
class Head:
    """The latest commit of a repository."""

    commit: str | None  #: None before the first one
    files: frozenset[str]
    public: bool = False


class HubRepository:
    """A dataset or a model on the Hub, written with the token of this user.

    Every method raises `UsageError` for what the user must change, and `HugqueueError` if the Hub fails for long.
    """

    def __init__(self, repo: str, kind: Literal["dataset", "model"], commit_seconds: float = 60.0) -> None:
        """Name a repository.

        Args:
            repo: ORG/NAME.
            kind: what it holds.
            commit_seconds: seconds between two commits, and at most before the second attempt of a request.
        """
        if missing_libraries(["huggingface_hub"]):
            raise UsageError(f"Writing to the Hub needs huggingface-hub: {install_command('hub')}.")
        self.repo = repo
        self.kind = kind
        self.commit_seconds = commit_seconds
        self._committed_at: float | None = None  #: seconds since the epoch

    @cached_property
    def _api(self) -> Any:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
        return HfApi(library_name="hugqueue", library_version=installed_version("hugqueue"))

    @property
    def url(self) -> str:
        """Its page on the Hub."""
        return f"{self._api.endpoint}/{'datasets/' if self.kind == 'dataset' else ''}{self.repo}"

    def _call(self, request: Callable[[], Any], name: str | None = None) -> Any:
        """Return what a request returns, repeated while that may help; its errors are ours."""
        try:
            return with_retries(request, min(1.0, self.commit_seconds))
        except HugqueueError:
            raise
        except Exception as error:  # a boundary, as in `with_retries`
            raise refusal(name or f"{self.kind} {self.repo}", error) from error

    def check_writable(self) -> bool:
        """Check that this user may write to the repository, or create it; change nothing.

        Returns:
            Whether it exists.

        Raises:
            UsageError: there is no token, or the Hub does not accept it; the repository is gated or may not be
                written; or it is missing and may not be created.
        """
        from huggingface_hub import get_token

        if get_token() is None:
            raise UsageError(
                f"{self.kind} {self.repo}: writing to the Hub needs a token: set HF_TOKEN, or run `hf auth login`."
            )
        user = self._call(self._api.whoami)
        role = ((user.get("auth") or {}).get("accessToken") or {}).get("role")
        if role == "read":
            raise UsageError(
                f"{self.kind} {self.repo}: this token of {user.get('name')} may only read. Use one with write access."
            )
        if not self.exists():
            self._check_may_create(user)
            return False
        self._call(lambda: self._api.auth_check(self.repo, repo_type=self.kind, write=True))
        return True

    def exists(self) -> bool:
        """Return whether the repository exists, as far as this user may see.

        Raises:
            UsageError: it is gated, and this user has no access.
        """
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

        def look() -> bool:
            try:
                self._api.repo_info(self.repo, repo_type=self.kind)
            except GatedRepoError:
                raise
            except RepositoryNotFoundError:
                return False
            return True

        return bool(self._call(look))

    def _check_may_create(self, user: dict[str, Any]) -> None:
        namespace = self.repo.partition("/")[0]
        organizations = {org.get("name"): org.get("roleInOrg") for org in user.get("orgs") or []}
        allowed = [name for name, role in organizations.items() if role is None or role in _WRITING_ROLES]
        if namespace not in (user.get("name"), *allowed):
            raise UsageError(
                f"{self.kind} {self.repo} does not exist (or may not be seen), and this token cannot create it: it "
                f"writes for {', '.join(map(str, (user.get('name'), *allowed)))}, not for {namespace}."
            )

    def create(self, *, public: bool) -> None:
        """Create the repository if it does not exist."""

        def make() -> None:
            try:
                self._api.create_repo(self.repo, repo_type=self.kind, private=not public, exist_ok=True)
            except Exception as error:
                if status(error) == 409:  # another command made it
                    return
                raise

        self._call(make)

    def head(self) -> Head:
        """Return its latest commit."""
        info = self._call(lambda: self._api.repo_info(self.repo, repo_type=self.kind))
        return Head(info.sha, frozenset(file.rfilename for file in info.siblings or ()), info.private is False)

    def read(self, path: str, head: Head) -> str | None:
        """Return the text of a file at a commit; None if there is no such file."""
        if path not in head.files:
            return None
        with tempfile.TemporaryDirectory(prefix="hugqueue-hub-") as directory:
            options = {"repo_type": self.kind, "revision": head.commit, "cache_dir": directory}
            found = self._call(lambda: self._api.hf_hub_download(self.repo, path, **options))
            return Path(found).read_text("utf-8", "replace")

    def preupload(self, path: str, source: Path) -> Any:
        """Upload a file that a later commit adds; return that commit's operation. The file must stay until then."""
        operation = added_file(path, source)
        options = {"repo_type": self.kind, "free_memory": False}
        self._call(lambda: self._api.preupload_lfs_files(self.repo, [operation], **options), f"{self.repo}/{path}")
        return operation

    def seconds_to_next_commit(self) -> float:
        """Return the seconds until the next commit may be made."""
        if self._committed_at is None:
            return 0.0
        return min(max(self._committed_at + self.commit_seconds - time.time(), 0.0), self.commit_seconds)

    def note_commit(self, at: float) -> None:
        """Note when a commit was made, in seconds since the epoch."""
        self._committed_at = max(at, self._committed_at or 0.0)

    def commit(self, plan: Callable[[Head], Sequence[Any] | None], message: str) -> None:
        """Make one commit upon the latest one.

        Args:
            plan: returns the operations upon a commit, or None if nothing is left to do. It is called again if another
                commit came first, or if the answer to ours was lost.
            message: the first line of the commit's message.
        """

        def attempt() -> None:
            head = self.head()
            operations = plan(head)
            if operations is None:
                self.note_commit(time.time())
                return
            options = {"repo_type": self.kind, "parent_commit": head.commit, "commit_message": message}
            self._api.create_commit(self.repo, operations, **options)
            self.note_commit(time.time())

        self._call(attempt)


def added_file(path: str, content: str | Path) -> Any:
    """Return the operation of a commit that writes a file: a text, or what is at a path of this machine."""
    from huggingface_hub import CommitOperationAdd

    data = content.encode() if isinstance(content, str) else content
    return CommitOperationAdd(path_in_repo=path, path_or_fileobj=data)
