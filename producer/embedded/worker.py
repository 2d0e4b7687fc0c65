"""Worker of the embedded Redis: the supervisor process that the daemon runs while a command waits for work.

A supervisor that exits by itself could not start, because of an unknown model or a missing library. All unfinished
jobs then fail with the reason, so that the commands waiting for them report it; the next command makes another
attempt. A supervisor that was killed is restarted.
"""

import dataclasses
import logging
import os
import subprocess
import sys
import time

import redis

from common.models.registry import registry_url
from common.notifications import ANY_ORIGIN
from common.processes import die_with_parent
from common.queue.jobs import JobStore
from common.queue.ledger import Ledger
from common.records import Failure
from common.settings import Settings, to_environ
from producer.embedded.log_files import last_error, open_log
from producer.embedded.state_dir import StateDir

logger = logging.getLogger(__name__)

#: Seconds that running chunks get once no command waits for them; then they are released for a later worker.
GRACE_SECONDS = 5.0
#: Kills in a row, each within this many seconds of a start, after which the worker is not restarted.
MAX_KILLS, QUICK_SECONDS = 5, 20.0


class Worker:
    """Starts the supervisor when it is wanted and stops it when it is not. Only `stop` blocks."""

    def __init__(self, state_dir: StateDir, settings: Settings, client: "redis.Redis") -> None:
        self._state_dir = state_dir
        self._settings = dataclasses.replace(
            settings,
            broker_url=state_dir.url,
            any_path=True,
            notify_allowed=(ANY_ORIGIN,),
            train=True,
            models_url=registry_url(settings) or "",
            supervised=os.getpid(),
            grace_seconds=min(settings.grace_seconds, GRACE_SECONDS),
        )
        self._store = JobStore(client, settings.result_ttl)
        self._ledger = Ledger(client, settings.lease_seconds)
        self._process: subprocess.Popen[bytes] | None = None
        self._stop_by: float | None = None
        self._failure: Failure | None = None
        self._request = 0
        self._log_start = 0
        self._started_at = 0.0
        self._kills = 0  #: in a row

    @property
    def is_running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    def reconcile(self, *, wanted: bool, request: int) -> None:
        """Start, restart or stop the supervisor as needed; `request` changes whenever a new command wants it."""
        if self._process is not None:
            self._check_exit(self._process)
        if self._process is not None:
            if not wanted or self._stop_by is not None:
                self._terminate(self._process)
        elif not wanted:
            self._failure = None
        elif self._failure is None or request != self._request:
            self._start(request)
        else:
            self._fail_jobs(self._failure)

    def _start(self, request: int) -> None:
        self._failure, self._stop_by, self._request = None, None, request
        self._state_dir.worker_failure.unlink(missing_ok=True)
        self._started_at = time.monotonic()
        log = open_log(self._state_dir.worker_log)
        try:
            self._log_start = os.fstat(log).st_size
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "workers.cli", "start"],
                env={**os.environ, **to_environ(self._settings)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # HUGQUEUE_SUPERVISED takes effect only once the supervisor runs. Safe: the daemon has one thread.
                preexec_fn=die_with_parent(),  # noqa: PLW1509
                start_new_session=True,
            )
        finally:
            os.close(log)
        logger.info("started a worker, process %d", self._process.pid)

    def _check_exit(self, process: "subprocess.Popen[bytes]") -> None:
        status = process.poll()
        if status is None:
            return
        self._process = None
        if self._stop_by is not None:
            logger.info("the worker has stopped")
        elif status > 0:
            self._fail(f"could not start: {last_error(self._state_dir.worker_log, self._log_start).rstrip('.')}")
        else:
            self._count_kill(f"was killed (status {status})")

    def _count_kill(self, event: str) -> None:
        self._kills = self._kills + 1 if time.monotonic() - self._started_at < QUICK_SECONDS else 1
        if self._kills < MAX_KILLS:
            logger.error("the worker %s; starting it again", event)
        else:
            self._kills = 0
            self._fail(f"{event}, {MAX_KILLS} times in a row")

    def _fail(self, reason: str) -> None:
        message = f"The embedded worker {reason}. Its log: {self._state_dir.worker_log}"
        logger.error("%s", message)
        self._state_dir.worker_failure.write_text(message)
        self._failure = Failure("no_worker", message)
        self._fail_jobs(self._failure)

    def _fail_jobs(self, failure: Failure) -> None:
        try:
            for job_id in self._store.active():
                if self._ledger.fail(job_id, failure):
                    logger.error("job %s failed: no worker", job_id)
        except redis.RedisError as error:
            logger.warning("cannot fail the jobs now: %s", error)

    def _terminate(self, process: "subprocess.Popen[bytes]") -> None:
        if self._stop_by is None:
            self._stop_by = time.monotonic() + self._settings.supervisor_stop_seconds
            process.terminate()
        elif time.monotonic() > self._stop_by:
            process.kill()

    def stop(self) -> None:
        """Stop the supervisor and wait until it has exited."""
        while self._process is not None:
            self.reconcile(wanted=False, request=self._request)
            time.sleep(0.05)
