"""`python -m benchmarks.gpu`: tests and measures hugqueue on the GPU of this machine, in less than eight minutes.

It needs no network. Each step runs in a process of its own under a time limit, with its output in a log; the summary
is written anew after each, so that a run that is stopped keeps what it has. The exit status is 1 if any step failed.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.steps import Step, steps
from benchmarks.gpu.summary import Summary

ROOT = Path(__file__).parents[2]
#: For all steps together, by default; with more, each gets more too.
SECONDS = 470.0


def main() -> None:
    """Run the steps."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__)
    parser.add_argument("--results", type=Path, default=ROOT / "gpu-results", help="folder for logs and summary")
    parser.add_argument("--wheels", type=Path, default=ROOT / ".gpu", help="what `make gpu-wheels` made; default: .gpu")
    parser.add_argument("--device", default="cuda:0", help="cpu runs what a CPU can, to test this very script")
    parser.add_argument("--tiny", action="store_true", help="small models and few texts, for a CPU")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all steps together; default: %(default)s")
    parser.add_argument("--only", action="append", help="only steps whose name has this in it; repeatable")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the step that runs is ended too
    chosen.results.mkdir(parents=True, exist_ok=True)
    summary = Summary(chosen.results)
    deadline, patience = time.monotonic() + chosen.seconds, max(1.0, chosen.seconds / SECONDS)
    with tempfile.TemporaryDirectory(prefix="hugqueue-gpu-") as scratch:
        environ = _environ(chosen, Path(scratch))
        for step in steps(chosen.device, tiny=chosen.tiny):
            if chosen.only and not any(part in step.name for part in chosen.only):
                continue
            print(f"{step.name} ...", end=" ", flush=True)
            limit = min(step.seconds * patience, deadline - time.monotonic())
            result = summary.add(step.name, *_run(step, environ, chosen.results, limit))
            print(f"{result.status} ({result.seconds:.0f} s)", flush=True)
    print(f"Summary: {summary.path}")
    sys.exit(summary.failed)


def _run(step: Step, environ: dict[str, str], results: Path, limit: float) -> tuple[str, float, Path]:
    """Run a step; return its status, the seconds it took, and its log."""
    log = results / f"{step.name}.log"
    if limit <= 0:
        log.write_text("not run: no time was left\n")
        return "not run: no time was left", 0.0, log
    begun = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *step.arguments, *step.with_results(results)],
            cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(limit)
            status = "passed" if code == 0 else f"failed with status {code}"
        except subprocess.TimeoutExpired:
            status = f"stopped after {limit:.0f} s"
        finally:
            _end(process)
    return status, time.monotonic() - begun, log


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a step: at first kindly, so that it ends its queues; then it and its session."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


def _environ(chosen: argparse.Namespace, scratch: Path) -> dict[str, str]:
    """Return the environment of the steps: the wheels installed, nothing from a network, all cores for tokenizers."""
    path: list[str] = [str(ROOT)]
    wheels: Sequence[Path] = sorted(chosen.wheels.glob("*.whl"))
    if wheels:
        print(f"Installing {len(wheels)} wheels from {chosen.wheels}", flush=True)
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        site = scratch / "site"
        subprocess.run([*install, "--no-cache-dir", "--target", str(site), *map(str, wheels)], check=True)
        path.insert(0, str(site))
    before = os.environ.get("PYTHONPATH")
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([*path, *([before] if before else [])]),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "HUGQUEUE_HOME": str(scratch / "home"),
        "TOKENIZERS_PARALLELISM": "true",
        "BENCHMARK_TOKENIZER": str(chosen.wheels / "minilm"),
        **({} if chosen.device.startswith("cuda") else {"GPU_TEST_DEVICE": chosen.device}),
    }


if __name__ == "__main__":
    main()
