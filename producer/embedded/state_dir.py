"""Where the embedded Redis lives: the names of its files, and that they are private."""

import dataclasses
import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from common.errors import UsageError
from common.settings import Settings
from common.sockets import fits_socket_path

#: What a path may hold to stand in an address as it is, whoever reads the address.
_PLAIN = re.compile(r"[A-Za-z0-9/._-]+")
#: Not the temporary directory of the environment: commands of one user must agree on it, from cron or a terminal.
_SHORT_BASE = Path("/tmp")  # noqa: S108 - the directory in it is checked to be ours alone


@dataclass(frozen=True, slots=True)
class StateDir:
    """The state directory and what lies in it."""

    home: Path

    @classmethod
    def of(cls, settings: Settings) -> "StateDir":
        """Return the place that the settings name."""
        return cls(settings.home.expanduser().absolute())

    @property
    def in_use(self) -> Path:
        """Lock: shared by every command that needs Redis."""
        return self.home / "in-use.lock"

    @property
    def working(self) -> Path:
        """Lock: shared by every command that needs a worker; touched by each of them before."""
        return self.home / "working.lock"

    @property
    def kept(self) -> Path:
        """Until when a worker is kept that nobody needs at present, in seconds since the epoch."""
        return self.home / "worker-kept-until"

    @property
    def keeper(self) -> Path:
        """Lock: held by the keeper, whose process id it holds."""
        return self.home / "keeper.lock"

    @property
    def environment(self) -> Path:
        """A digest of the variables that the keeper, and so its worker, was started with."""
        return self.home / "environment"

    @property
    def server(self) -> Path:
        """Lock: held by redis-server itself as long as it can write."""
        return self.home / "redis.lock"

    @property
    def daemon_log(self) -> Path:
        """What the keeper says."""
        return self.home / "keeper.log"

    @property
    def worker_log(self) -> Path:
        """What the worker says."""
        return self.home / "worker.log"

    @property
    def worker_failure(self) -> Path:
        """Why there is no worker; not there as long as nothing is wrong."""
        return self.home / "worker.failure"

    @property
    def server_log(self) -> Path:
        """What redis-server says."""
        return self.home / "redis.log"

    @property
    def data(self) -> Path:
        """Directory of the append-only file."""
        return self.home / "redis"

    @property
    def version(self) -> Path:
        """Which server wrote the data."""
        return self.data / "version.json"

    @property
    def socket(self) -> Path:
        """Where Redis listens: in the state directory if its path is short and plain enough, else in `/tmp`."""
        path = self.home / "redis.sock"
        if fits_socket_path(path) and _PLAIN.fullmatch(str(path)):
            return path
        digest = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:16]
        return _SHORT_BASE / f"hugqueue-{os.getuid()}-{digest}" / "redis.sock"

    @property
    def url(self) -> str:
        """The address of Redis, as Celery writes it."""
        return f"redis+socket://{self.socket}?virtual_host=0"

    def apply_to(self, settings: Settings) -> Settings:
        """Return settings that lead to its Redis."""
        return dataclasses.replace(settings, broker_url=self.url, home=self.home)

    def prepare(self) -> None:
        """Make the directories.

        Raises:
            UsageError: one of them cannot be made, or others could change what is in it.
        """
        for directory in (self.home, self.data, self.socket.parent):
            _make_private(directory)

    def __str__(self) -> str:
        user = Path.home()
        return f"~/{self.home.relative_to(user)}" if self.home.is_relative_to(user) else str(self.home)


def _make_private(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = directory.stat()
        planted = directory.is_symlink() and directory.parent == _SHORT_BASE
    except OSError as error:
        raise UsageError(
            f"The state directory {directory} cannot be made: {error.strerror}. Name another with HUGQUEUE_HOME."
        ) from error
    if planted or info.st_uid != os.getuid() or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UsageError(
            f"The directory {directory} is not private: its owner is user {info.st_uid}, its mode "
            f"{stat.S_IMODE(info.st_mode):04o}; expected user {os.getuid()} and 0700. Name another with HUGQUEUE_HOME."
        )
