"""Flower as a process of its own."""

import contextlib
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support.processes import ROOT, free_port, wait_until


@contextlib.contextmanager
def flower(environ: Mapping[str, str], log: Path, *arguments: str) -> Iterator[str]:
    """Run Flower as long as the block lasts; give its address. Its API answers without a password."""
    port = free_port()
    command = [sys.executable, "-P", "-m", "celery", "-A", "hugqueue", "flower", "--address=127.0.0.1"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, f"--port={port}", "--read-only", *arguments],
            env={**environ, "FLOWER_UNAUTHENTICATED_API": "true"},
            cwd=ROOT,
            stdout=out,
            stderr=out,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: get(f"{address}/healthcheck") == "OK", 60, f"Flower answers: {log}")
        yield address
    finally:
        process.kill()
        process.wait()


def get(address: str) -> str:
    """Return a page; empty where there is none."""
    try:
        with urllib.request.urlopen(address, timeout=20) as answer:
            return answer.read().decode()
    except urllib.error.URLError:
        return ""
