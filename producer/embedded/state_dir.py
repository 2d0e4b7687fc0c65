"""State directory of the embedded Redis: the paths of its files, and the check that it is private."""

import dataclasses
import hashlib
import os
import re
import stat
from pathlib import Path

from common.errors import UsageError
from common.settings import Settings
from common.sockets import fits_socket_path

#: Paths that need no quoting in a URL.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._-]+")
#: Not $TMPDIR: all commands of a user must agree on it, from cron or a terminal.
_SHORT_BASE = Path("/tmp")  # noqa: S108 - the directory in it is checked to be private


class StateDir:
    """The state directory and the paths in it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        #: Lock, shared by every command that needs Redis.
        self.in_use = home / "in-use.lock"
        #: Lock, shared by every command that needs a worker; each of them touches it first.
        self.worker_in_use = home / "worker-in-use.lock"
        #: Lock of the daemon; contains its process id.
        self.daemon = home / "daemon.lock"
        #: Lock held by redis-server itself as long as it can write.
        self.server = home / "redis.lock"
        #: Until when an idle worker is kept, in seconds since the epoch.
        self.kept_until = home / "worker-kept-until"
        #: Digest of the variables that the daemon, and so its worker, was started with.
        self.environment = home / "environment"
        #: Why there is no worker; absent as long as nothing is wrong.
        self.worker_failure = home / "worker.failure"
        self.daemon_log = home / "daemon.log"
        self.worker_log = home / "worker.log"
        self.server_log = home / "redis.log"
        #: Directory of the append-only file.
        self.data = home / "redis"
        #: Which server wrote the data.
        self.version = self.data / "version.json"
        #: Where Redis listens.
        self.socket = _socket_path(home)
        #: URL of Redis, in Celery's form.
        self.url = f"redis+socket://{self.socket}?virtual_host=0"

    @classmethod
    def of(cls, settings: Settings) -> "StateDir":
        """Return the state directory that the settings name."""
        return cls(settings.home.expanduser().absolute())

    def apply_to(self, settings: Settings) -> Settings:
        """Return settings that connect to this directory's Redis."""
        return dataclasses.replace(settings, broker_url=self.url, home=self.home)

    def create(self) -> None:
        """Create the directories.

        Raises:
            UsageError: one of them cannot be created, or other users could change its content.
        """
        for directory in (self.home, self.data, self.socket.parent):
            _create_private(directory)

    def __str__(self) -> str:
        user = Path.home()
        return f"~/{self.home.relative_to(user)}" if self.home.is_relative_to(user) else str(self.home)


def _socket_path(home: Path) -> Path:
    """Return a path in the state directory if it is short and plain enough for a socket's URL, else one in `/tmp`."""
    path = home / "redis.sock"
    if fits_socket_path(path) and _PLAIN_PATH.fullmatch(str(path)):
        return path
    digest = hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
    return _SHORT_BASE / f"hugqueue-{os.getuid()}-{digest}" / "redis.sock"


def _create_private(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = directory.stat()
        planted = directory.is_symlink() and directory.parent == _SHORT_BASE
    except OSError as error:
        raise UsageError(
            f"The state directory {directory} cannot be created: {error.strerror}. Set HUGQUEUE_HOME to another one."
        ) from error
    if planted or info.st_uid != os.getuid() or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UsageError(
            f"The directory {directory} is not private: its owner is user {info.st_uid}, its mode "
            f"{stat.S_IMODE(info.st_mode):04o}; expected user {os.getuid()} and 0700. "
            "Set HUGQUEUE_HOME to another directory."
        )
