"""The supervisor: one worker per device, kept alive; knows processes and signals, nothing of chunks or models."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import redis

from common.gpus import Gpu
from common.settings import Settings, to_environ
from workers import CANNOT_GO_ON, CANNOT_START
from workers.devices import CLAIM_MS, claim, only_trains, release

logger = logging.getLogger(__name__)

#: Seconds between looks at the children.
TICK = 0.2
#: Seconds to the first restart; doubled each time, up to the last: less than a lease, so that a worker which is killed
#: again and again is back by the time at which its chunks are open again.
BACKOFF_FIRST, BACKOFF_LAST = 1.0, 20.0
#: A worker that lived so long starts afresh with the first.
HEALTHY = 60.0
#: So many deaths in a row, each so soon after the start, and there is something that another start will not mend.
QUICK_DEATHS, QUICK = 5, 20.0
#: The same for workers whose device process cannot be kept alive: they try for a while before they say so.
QUICK_FOR_DEVICE = 3600.0
#: Seconds between tries to claim GPUs.
CLAIM_AGAIN = 1.0


@dataclass(slots=True, eq=False)
class Child:
    """One worker, its devices, and how often it has fallen."""

    gpus: Sequence[Gpu]  #: those it may use; none for the CPU
    needs: int  #: how many of them it uses
    name: str
    environ: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None
    claimed: Sequence[Gpu] = ()
    waits_for_gpus: bool = False
    given_up: bool = False
    started: float = 0.0
    pause: float = BACKOFF_FIRST
    quick_deaths: int = 0
    again_at: float = 0.0
    claim_again_at: float = 0.0

    def start(self, log_level: str) -> None:
        """Start the worker in a session of its own, so that Ctrl-C reaches it through the supervisor only."""
        command = [sys.executable, "-P", "-m", "workers.app", "worker", "-n", self.name]
        command += ["--without-gossip", "--without-mingle", "-l", log_level]
        environ = {**self.environ, "HUGQUEUE_DEVICE": "cuda:0" if self.claimed else "cpu"}
        if self.claimed:
            environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpu.uuid for gpu in self.claimed)
        self.process = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, start_new_session=True)
        self.started = time.monotonic()


class Supervisor:
    """Starts the workers, starts them again when they fall, and stops them.

    Args:
        settings: of all workers.
        devices: a GPU each, or None for the CPU.
        client: of the Redis where GPUs are claimed.
        log_level: of the workers.
        most: how many of the devices to use; the others are left to other supervisors of this machine.
    """

    def __init__(
        self,
        settings: Settings,
        devices: Sequence[Gpu | None],
        client: "redis.Redis",
        *,
        log_level: str,
        most: int | None = None,
    ) -> None:
        self._most = most or len(devices)
        self._settings = settings
        self._client = client
        self._log_level = log_level
        self._owner = f"{os.uname().nodename}/{os.getpid()}"
        self._stopping = False
        trains = only_trains(settings)
        self._children = [self._train_child(devices)] if trains else [self._child(gpu) for gpu in devices]

    def _child(self, gpu: Gpu | None) -> Child:
        gpus = [gpu] if gpu else []
        return Child(gpus, len(gpus), self._name(f"gpu{gpu.index}" if gpu else "cpu"), self._environ())

    def _train_child(self, devices: Sequence[Gpu | None]) -> Child:
        """Return one worker for all devices, or for as many of them as it is to use."""
        gpus = [gpu for gpu in devices if gpu]
        return Child(gpus, min(len(gpus), self._most), self._name("train"), self._environ())

    def _name(self, label: str) -> str:
        return f"{label}-{os.getpid()}@{os.uname().nodename}"

    def _environ(self) -> Mapping[str, str]:
        return {**os.environ, **to_environ(self._settings), "HUGQUEUE_SUPERVISED": str(os.getpid())}

    def run(self) -> int:
        """Keep the workers alive until SIGTERM or SIGINT; return the exit status.

        That is 0 after a stop that was asked for, 1 when a worker could not start or none is left to start again.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask_to_stop)
        status = 0
        while not self._stopping and not status:
            status = self._look_after_all()
            if self._settings.supervised not in (0, os.getppid()):
                self._stopping = True
            time.sleep(TICK)
        self._stop_all()
        return status

    def _ask_to_stop(self, *_: object) -> None:
        self._stopping = True

    def _look_after_all(self) -> int:
        for child in self._children:
            if child.given_up:
                continue
            if child.process is None:
                self._start(child)
            elif (status := child.process.poll()) is not None:
                if status == CANNOT_START:
                    return 1
                self._fallen(child, status)
            else:
                self._renew_claims(child)
        return int(all(child.given_up for child in self._children))

    def _start(self, child: Child) -> None:
        enough = sum(other.process is not None for other in self._children) >= self._most
        if enough or time.monotonic() < child.again_at:
            return
        child.claimed = self._claim(child)
        child.again_at = time.monotonic() + CLAIM_AGAIN
        if len(child.claimed) < child.needs:
            return
        try:
            child.start(self._log_level)
        except OSError as error:  # too many processes, no memory to fork: there may be room in a moment
            logger.error("worker %s cannot be started: %s", child.name, error)

    def _claim(self, child: Child) -> Sequence[Gpu]:
        """Return the GPUs that a worker is to use, now claimed, or none of them: one with too few would keep them."""
        claimed: list[Gpu] = []
        try:
            for gpu in child.gpus:
                if len(claimed) < child.needs and claim(self._client, gpu, self._owner):
                    claimed.append(gpu)
        except redis.RedisError as error:
            logger.warning("cannot claim GPUs for worker %s: %s", child.name, error)
        if len(claimed) < child.needs:
            if not child.waits_for_gpus:
                logger.info("worker %s waits: other workers have claimed its GPUs", child.name)
            child.waits_for_gpus = True
            self._release(claimed)
            return ()
        child.waits_for_gpus = False
        return claimed

    def _release(self, gpus: Sequence[Gpu]) -> None:
        for gpu in gpus:
            try:
                release(self._client, gpu, self._owner)
            except redis.RedisError as error:
                logger.warning("the claim of GPU %d is not given back, it runs out: %s", gpu.index, error)

    def _renew_claims(self, child: Child) -> None:
        if time.monotonic() > child.claim_again_at:
            for gpu in child.claimed:
                self._renew_claim(child, gpu)
            child.claim_again_at = time.monotonic() + CLAIM_MS / 3000

    def _renew_claim(self, child: Child, gpu: Gpu) -> None:
        try:
            ours = claim(self._client, gpu, self._owner)
        except redis.RedisError as error:
            logger.warning("the claim of GPU %d is not renewed: %s", gpu.index, error)
            return
        if not ours and child.process:
            logger.error("GPU %d was taken by another worker while Redis was away: stopping this one", gpu.index)
            child.process.terminate()

    def _fallen(self, child: Child, status: int) -> None:
        """Plan the next start of a worker that ended, or give it up; the others go on."""
        lived = time.monotonic() - child.started
        # A worker that was killed, or asked to stop, says nothing about the next one.
        by_itself = status not in (0, -signal.SIGKILL, -signal.SIGTERM)
        quick = QUICK_FOR_DEVICE if status == CANNOT_GO_ON else QUICK
        child.quick_deaths = child.quick_deaths + 1 if by_itself and lived < quick else 0
        child.process = None
        if child.quick_deaths >= QUICK_DEATHS:
            logger.error(
                "worker %s ended %d times within %.0f s of its start, with status %d at last: giving up. "
                "What it said is above.",
                child.name,
                QUICK_DEATHS,
                quick,
                status,
            )
            child.given_up = True
            self._release(child.claimed)
            return
        if lived > HEALTHY and status != CANNOT_GO_ON:
            child.pause = BACKOFF_FIRST
        logger.error("worker %s ended with status %d; starting it again in %.0f s", child.name, status, child.pause)
        child.again_at = time.monotonic() + child.pause
        child.pause = min(child.pause * 2, BACKOFF_LAST)

    def _stop_all(self) -> None:
        running = {child: child.process for child in self._children if child.process and child.process.poll() is None}
        for process in running.values():
            process.send_signal(signal.SIGTERM)
        end = time.monotonic() + self._settings.worker_stop
        while time.monotonic() < end and any(process.poll() is None for process in running.values()):
            for child in running:  # a worker uses its GPUs until it has ended
                self._renew_claims(child)
            time.sleep(TICK)
        for process in running.values():
            if process.poll() is None:
                process.kill()
                process.wait()
        for child in self._children:
            self._release(child.claimed)
