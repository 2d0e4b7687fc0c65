"""The worker of the embedded Redis: a supervisor process, there while somebody waits for work. Knows no locks.

A supervisor that ends by itself could not start (a model that cannot be had, a library that is not there). Then every
unfinished job is failed with the reason, so that whoever waits for it is told; another try comes with the next call.
One that was killed is started again.
"""

import dataclasses
import logging
import os
import subprocess
import sys
import time

import redis

from common.models.registry_location import registry_url
from common.processes import die_with_parent
from common.queue.jobs import JobStore
from common.queue.ledger import Ledger
from common.records import Failure
from common.settings import Settings, to_environ
from producer.embedded.log_files import last_error, open_log
from producer.embedded.state_dir import StateDir

logger = logging.getLogger(__name__)

#: Seconds that chunks in hand get when nobody waits for them any more: then they are given back, and kept for later.
GRACE = 5.0
#: So many supervisors killed in a row, each within so many seconds of its start, and no other is started.
MAX_KILLS, QUICK = 5, 20.0


class Worker:
    """Starts the supervisor when it is wanted and stops it when it is not. Nothing here blocks but `end`."""

    def __init__(self, state_dir: StateDir, settings: Settings, client: "redis.Redis") -> None:
        self._state_dir = state_dir
        self._settings = dataclasses.replace(
            settings,
            broker_url=state_dir.url,
            any_path=True,
            train=True,
            models_url=registry_url(settings) or "",
            supervised=os.getpid(),
            grace=min(settings.grace, GRACE),
        )
        self._store = JobStore(client, settings.result_ttl)
        self._ledger = Ledger(client, settings.lease)
        self._process: subprocess.Popen[bytes] | None = None
        self._stop_by: float | None = None
        self._failure: Failure | None = None
        self._call = 0
        self._log_start = 0
        self._started = 0.0
        self._kills = 0  #: in a row

    @property
    def is_running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    def reconcile(self, *, wanted: bool, call: int) -> None:
        """Do what is due; `call` changes whenever somebody new wants the worker."""
        if self._process is not None:
            self._check_exit(self._process)
        if self._process is not None:
            if not wanted or self._stop_by is not None:
                self._stop(self._process)
        elif not wanted:
            self._failure = None
        elif self._failure is None or call != self._call:
            self._start(call)
        else:
            self._fail_jobs(self._failure)

    def _start(self, call: int) -> None:
        self._failure, self._stop_by, self._call = None, None, call
        self._state_dir.worker_failure.unlink(missing_ok=True)
        self._started = time.monotonic()
        log = open_log(self._state_dir.worker_log)
        try:
            self._log_start = os.fstat(log).st_size
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "workers.cli", "start"],
                env={**os.environ, **to_environ(self._settings)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Besides HUGQUEUE_SUPERVISED, which counts once the supervisor runs. Safe: the keeper has one thread.
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
            logger.info("the worker has ended")
            return
        if status > 0:
            reason = last_error(self._state_dir.worker_log, self._log_start)
            self._give_up(f"could not start: {reason.rstrip('.')}")
            return
        self._kills = self._kills + 1 if time.monotonic() - self._started < QUICK else 1
        what = f"was ended from outside (status {status})"
        if self._kills < MAX_KILLS:
            logger.error("the worker %s; starting it again", what)
        else:
            self._kills = 0
            self._give_up(f"{what}, {MAX_KILLS} times in a row")

    def _give_up(self, what: str) -> None:
        message = f"The embedded worker {what}. Its log: {self._state_dir.worker_log}"
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

    def _stop(self, process: "subprocess.Popen[bytes]") -> None:
        if self._stop_by is None:
            self._stop_by = time.monotonic() + self._settings.workers_stop
            process.terminate()
        elif time.monotonic() > self._stop_by:
            process.kill()

    def end(self) -> None:
        """Stop it and wait for that."""
        while self._process is not None:
            self.reconcile(wanted=False, call=self._call)
            time.sleep(0.05)
