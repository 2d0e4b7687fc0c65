"""A peer's script, running in the environment of its library."""

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.strategies import Strategy

_SCRIPTS = Path(__file__).parent / "scripts"


class PeerError(Exception):
    """A peer's script has ended; the text is the last line of its errors."""


class Peer:
    """A script with its model loaded.

    Args:
        python: the interpreter of its environment.
        arguments: the name of the script in `scripts`, and its arguments.
    """

    def __init__(self, python: Path, *arguments: object) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self._log = Path(self._directory.name) / "log"
        script, *others = arguments
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [python, _SCRIPTS / f"{script}.py", *map(str, others)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            )
        try:
            self._await("ready")
        except PeerError:
            self.close()
            raise

    def strategy(self, batch: int) -> Strategy:
        """Return the strategy of running the script's model in batches of that size."""

        def run(texts: Sequence[str]) -> list[Any]:
            inputs, outputs = (Path(self._directory.name) / name for name in ("inputs", "outputs.npy"))
            inputs.write_text(json.dumps(list(texts)))
            request = {"inputs": str(inputs), "outputs": str(outputs), "batch": batch}
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # the cause is in its log
                self._process.stdin.write(json.dumps(request) + "\n")
                self._process.stdin.flush()
            self._await("done")
            content = outputs.read_bytes()
            return json.loads(content) if content.startswith(b"[") else list(np.load(outputs))

        return run

    def close(self) -> None:
        """End the script, and what it started: vLLM's own processes keep gigabytes otherwise."""
        script = psutil.Process(self._process.pid)
        for process in (script, *script.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        self._directory.cleanup()

    def _await(self, word: str) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != word:
            lines = self._log.read_text(errors="replace").strip().splitlines()
            raise PeerError(lines[-1] if lines else "the script ended")
