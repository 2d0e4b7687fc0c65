"""A real S3 server for tests: moto, in a process of its own, with an empty bucket."""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from types import TracebackType
from urllib.request import Request, urlopen

import fsspec

from tests.support.processes import free_port, wait_until

BUCKET = "hugqueue"


class S3Server:
    """Serves S3 on a free port; a context manager.

    `url` is the address of a folder in the bucket, `environ` what s3fs needs to reach it.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"s3://{BUCKET}/models"
        self.environ = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",  # a server that is away is soon known to be
        }

    def files(self) -> fsspec.AbstractFileSystem:
        """The server as a file system that keeps nothing in mind: a look from outside."""
        return fsspec.filesystem(
            "s3",
            endpoint_url=self.environ["AWS_ENDPOINT_URL"],
            key=self.environ["AWS_ACCESS_KEY_ID"],
            secret=self.environ["AWS_SECRET_ACCESS_KEY"],
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def find(self, pattern: str) -> list[str]:
        """The files below `url` that match, without the bucket and the folder."""
        folder = self.url.removeprefix("s3://")
        return sorted(path.removeprefix(f"{folder}/") for path in self.files().glob(f"{folder}/{pattern}"))

    def start(self) -> None:
        """Start the server; it has forgotten all it had."""
        command = [sys.executable, "-P", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, **quiet)
        wait_until(self._answers, 30, "the S3 server answers")
        self.files().makedirs(BUCKET, exist_ok=True)  # a worker that waits for the server may be the first

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Open to nobody, as it knows no keys."""
        address = f"{self.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
        requests_left = ("0", "1000000000")
        before, after = (Request(address, text.encode(), {"Content-Type": "text/plain"}) for text in requests_left)
        urlopen(before).close()
        yield
        urlopen(after).close()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> "S3Server":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _answers(self) -> bool:
        assert self.process.poll() is None, "the S3 server ended"
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0
