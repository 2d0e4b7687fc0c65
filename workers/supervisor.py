"""The supervisor: starts one worker per device and keeps it alive. It knows processes, not chunks or models."""

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
from common.redis import keys
from common.redis.locks import acquire_lock, release_lock
from common.settings import Settings, to_environ
from workers import EXIT_CANNOT_START, EXIT_DEVICE_BROKEN, EXIT_SHUT_DOWN
from workers.child_env import available_cpus
from workers.devices import only_trains

logger = logging.getLogger(__name__)

#: Seconds between checks of the workers.
POLL_SECONDS = 0.2
#: Seconds before the first restart; doubled each time, up to the maximum: less than a lease, so that a worker that is
#: killed again and again is back by the time its chunks are open again.
MIN_BACKOFF, MAX_BACKOFF = 1.0, 20.0
#: After a worker has lived this many seconds, its backoff is reset.
HEALTHY_SECONDS = 60.0
#: Deaths in a row, each within these seconds of the start, after which a worker is not restarted any more.
QUICK_DEATHS, QUICK_DEATH_SECONDS = 5, 20.0
#: The same for workers whose device process cannot be kept alive, which try for a while before they exit.
QUICK_DEVICE_DEATH_SECONDS = 3600.0
#: Milliseconds after which the claims of a dead supervisor expire.
CLAIM_MS = 30_000
#: Seconds between tries to claim GPUs.
CLAIM_RETRY_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class WorkerProcess:
    """A worker process, its GPUs, and its restarts."""

    gpus: Sequence[Gpu]  #: it may use; none for the CPU
    gpu_count: int  #: how many of them it uses
    name: str
    environ: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None
    claimed: Sequence[Gpu] = ()
    waits_for_gpus: bool = False
    abandoned: bool = False  #: not started again, as it died too often
    shut_down: bool = False  #: nor is one that was shut down on request
    started: float = 0.0
    pause: float = MIN_BACKOFF
    quick_deaths: int = 0
    restart_at: float = 0.0
    renew_claims_at: float = 0.0

    def start(self, log_level: str) -> None:
        """Start the worker in its own session, so that Ctrl-C reaches it through the supervisor only."""
        command = [sys.executable, "-P", "-m", "workers.app", "worker", "-n", self.name]
        command += ["--without-gossip", "--without-mingle", "-l", log_level]
        environ = {**self.environ, "HUGQUEUE_DEVICE": "cuda:0" if self.claimed else "cpu"}
        if self.claimed:
            environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpu.uuid for gpu in self.claimed)
        self.process = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, start_new_session=True)
        self.started = time.monotonic()


class Supervisor:
    """Starts the workers, restarts them when they die, and stops them.

    Args:
        settings: of all workers.
        devices: a GPU each, or None for the CPU.
        client: of the Redis where GPUs are claimed.
        log_level: of the workers.
        max_workers: how many of the devices to use; the others are left to other supervisors of this machine.
    """

    def __init__(
        self,
        settings: Settings,
        devices: Sequence[Gpu | None],
        client: "redis.Redis",
        *,
        log_level: str,
        max_workers: int | None = None,
    ) -> None:
        self._max_workers = max_workers or len(devices)
        self._settings = settings
        self._client = client
        self._log_level = log_level
        self._owner = f"{os.uname().nodename}/{os.getpid()}"
        self._stopping = False
        trains = only_trains(settings)
        self._workers = [self._training_worker(devices)] if trains else [self._worker_for(gpu) for gpu in devices]

    def _worker_for(self, gpu: Gpu | None) -> WorkerProcess:
        gpus = [gpu] if gpu else []
        return WorkerProcess(gpus, len(gpus), self._name(f"gpu{gpu.index}" if gpu else "cpu"), self._environ())

    def _training_worker(self, devices: Sequence[Gpu | None]) -> WorkerProcess:
        """Return one worker for all devices, or for `max_workers` of them."""
        gpus = [gpu for gpu in devices if gpu]
        return WorkerProcess(gpus, min(len(gpus), self._max_workers), self._name("train"), self._environ())

    def _name(self, label: str) -> str:
        return f"{label}-{os.getpid()}@{os.uname().nodename}"

    def _environ(self) -> Mapping[str, str]:
        environ = {**os.environ, **to_environ(self._settings), "HUGQUEUE_SUPERVISED": str(os.getpid())}
        if self._max_workers > 1:  # by default, each would tokenize in as many threads as there are cores
            environ.setdefault("RAYON_NUM_THREADS", str(max(1, available_cpus() // self._max_workers)))
        return environ

    @property
    def worker_names(self) -> list[str]:
        """The names of its workers, which their heartbeats have."""
        return [worker.name for worker in self._workers]

    def run(self) -> int:
        """Keep the workers alive until SIGTERM or SIGINT; return the exit status.

        That is 0 after a requested stop, also of all workers one by one, and 1 if a worker could not start, or if all
        of them died too often.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request_stop)
        status = None
        while not self._stopping and status is None:
            status = self._check_all()
            if self._settings.supervised not in (0, os.getppid()):
                self._stopping = True
            time.sleep(POLL_SECONDS)
        self._stop_all()
        return status or 0

    def _request_stop(self, *_: object) -> None:
        self._stopping = True

    def _check_all(self) -> int | None:
        """Start and restart workers; return the exit status if that is over."""
        for worker in self._workers:
            if worker.abandoned or worker.shut_down:
                continue
            if worker.process is None:
                self._start(worker)
            elif (status := worker.process.poll()) is not None:
                if status == EXIT_CANNOT_START:
                    return 1
                self._end(worker, status)
            else:
                self._renew_claims(worker)
        shut_down = sum(worker.shut_down for worker in self._workers)
        over = all(worker.abandoned or worker.shut_down for worker in self._workers)
        return int(shut_down == 0) if over or shut_down >= self._max_workers else None

    def _start(self, worker: WorkerProcess) -> None:
        enough = sum(bool(other.process or other.shut_down) for other in self._workers) >= self._max_workers
        if enough or time.monotonic() < worker.restart_at:
            return
        worker.claimed = self._claim(worker)
        worker.restart_at = time.monotonic() + CLAIM_RETRY_SECONDS
        if len(worker.claimed) < worker.gpu_count:
            return
        try:
            worker.start(self._log_level)
        except OSError as error:  # too many processes, no memory to fork: that may pass
            logger.error("worker %s cannot be started: %s", worker.name, error)

    def _claim(self, worker: WorkerProcess) -> Sequence[Gpu]:
        """Claim the GPUs that a worker uses and return them, or claim none: one with too few would block them."""
        claimed: list[Gpu] = []
        try:
            for gpu in worker.gpus:
                if len(claimed) < worker.gpu_count and self._claim_gpu(gpu):
                    claimed.append(gpu)
        except redis.RedisError as error:
            logger.warning("cannot claim GPUs for worker %s: %s", worker.name, error)
        if len(claimed) < worker.gpu_count:
            if not worker.waits_for_gpus:
                logger.info("worker %s is waiting: other workers have claimed its GPUs", worker.name)
            worker.waits_for_gpus = True
            self._release(claimed)
            return ()
        worker.waits_for_gpus = False
        return claimed

    def _claim_gpu(self, gpu: Gpu) -> bool:
        """Claim a GPU or renew the claim; return whether it is held. Containers on one machine share GPUs this way."""
        return acquire_lock(self._client, keys.device_claim(gpu.uuid), self._owner, CLAIM_MS)

    def _release(self, gpus: Sequence[Gpu]) -> None:
        for gpu in gpus:
            try:
                release_lock(self._client, keys.device_claim(gpu.uuid), self._owner)
            except redis.RedisError as error:
                logger.warning("the claim of GPU %d was not released and will expire: %s", gpu.index, error)

    def _renew_claims(self, worker: WorkerProcess) -> None:
        if time.monotonic() > worker.renew_claims_at:
            for gpu in worker.claimed:
                self._renew_claim(worker, gpu)
            worker.renew_claims_at = time.monotonic() + CLAIM_MS / 3000

    def _renew_claim(self, worker: WorkerProcess, gpu: Gpu) -> None:
        try:
            ours = self._claim_gpu(gpu)
        except redis.RedisError as error:
            logger.warning("the claim of GPU %d was not renewed: %s", gpu.index, error)
            return
        if not ours and worker.process:
            logger.error("GPU %d was taken by another worker while Redis was away: stopping this one", gpu.index)
            worker.process.terminate()

    def _end(self, worker: WorkerProcess, status: int) -> None:
        """Note that a worker ended; it is started again unless it was shut down on request."""
        if status != EXIT_SHUT_DOWN:
            self._schedule_restart(worker, status)
            return
        logger.info("worker %s was shut down; it is not started again", worker.name)
        worker.process, worker.shut_down = None, True
        self._release(worker.claimed)

    def _schedule_restart(self, worker: WorkerProcess, status: int) -> None:
        """Schedule the next start of a worker that ended, or abandon it; the others continue."""
        lived = time.monotonic() - worker.started
        # After a kill or a requested stop the next start may well succeed.
        by_itself = status not in (0, -signal.SIGKILL, -signal.SIGTERM)
        quick = QUICK_DEVICE_DEATH_SECONDS if status == EXIT_DEVICE_BROKEN else QUICK_DEATH_SECONDS
        worker.quick_deaths = worker.quick_deaths + 1 if by_itself and lived < quick else 0
        worker.process = None
        if worker.quick_deaths >= QUICK_DEATHS:
            logger.error(
                "worker %s ended %d times within %.0f s of its start, last with status %d: giving up. "
                "Its output is above.",
                worker.name,
                QUICK_DEATHS,
                quick,
                status,
            )
            worker.abandoned = True
            self._release(worker.claimed)
            return
        if lived > HEALTHY_SECONDS and status != EXIT_DEVICE_BROKEN:
            worker.pause = MIN_BACKOFF
        logger.error("worker %s ended with status %d; starting it again in %.0f s", worker.name, status, worker.pause)
        worker.restart_at = time.monotonic() + worker.pause
        worker.pause = min(worker.pause * 2, MAX_BACKOFF)

    def _stop_all(self) -> None:
        running = {worker: worker.process for worker in self._workers if worker.process}
        for process in running.values():
            process.terminate()
        end = time.monotonic() + self._settings.worker_stop_seconds
        while time.monotonic() < end and any(process.poll() is None for process in running.values()):
            for worker in running:  # a worker uses its GPUs until it has ended
                self._renew_claims(worker)
            time.sleep(POLL_SECONDS)
        for process in running.values():
            process.kill()
            process.wait()
        for worker in self._workers:
            self._release(worker.claimed)
