"""The receiver of docs/notifications.md, as it stands there but for its port: what it believes, and what it refuses."""

import os
import re
import socket
import subprocess
import sys
import time

from tests.support.processes import ROOT, free_port, wait_until
from tests.support.webhook_receiver import SECRET
from workers.notifications.post import post
from workers.notifications.webhook import webhook_headers

BODY = b'{"type":"job.completed","data":{"job":{"id":"0123456789ab"}}}'


def test_the_receiver_believes_only_what_is_signed_and_new() -> None:
    page = (ROOT / "docs" / "notifications.md").read_text("utf-8")
    [code] = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    port = free_port()
    assert "8000" in code
    command = [sys.executable, "-c", code.replace("8000", str(port))]
    environ = {**os.environ, "HUGQUEUE_NOTIFY_SECRET": SECRET}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as receiver:
        wait_until(lambda: _accepts(port), 20, "the receiver listens")

        def send(body: bytes, at: float, *secrets: str) -> int:
            headers = webhook_headers("0123456789ab-1", BODY, at, secrets)
            return post(f"http://127.0.0.1:{port}/", body, headers, allowed=("*",), timeout=20).status

        now = time.time()
        answers = [send(BODY, now), send(BODY, now - 600, SECRET), send(BODY + b" ", now, SECRET)]
        answers += [send(BODY, now, "whsec_" + "QUJD" * 10), send(BODY, now, "whsec_" + "QUJD" * 10, SECRET)]
        receiver.terminate()
        assert receiver.stdout and receiver.stdout.read() == "job.completed 0123456789ab\n"
    assert answers == [401, 401, 401, 401, 204]


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
