"""The worker's context: what all its tickets share, started before the first one and stopped after the last."""

import logging
from collections.abc import Callable

from celery import Celery

from common.queue.jobs import JobStore
from common.queue.ledger import Ledger
from common.redis.client import connect
from common.reporting import CancelToken
from common.settings import Settings
from workers.celery_worker.heartbeat import HeartbeatThread
from workers.celery_worker.job_events import JobEvents
from workers.celery_worker.live_workers import LiveWorkers
from workers.celery_worker.model_affinity import ModelAffinity
from workers.celery_worker.reaper import Reaper
from workers.celery_worker.refusals import Refusals
from workers.celery_worker.tickets import TicketSender
from workers.device.client.device_client import DeviceClient
from workers.device.client.token_budget_cache import TokenBudgetCache
from workers.devices import describe_device, queues_of
from workers.leases import LeaseRenewer
from workers.notifications.notifier import Notifier
from workers.training.controller.finetuner import FineTuner

logger = logging.getLogger(__name__)


class WorkerContext:
    """What every ticket of a worker uses.

    Args:
        name: of the worker.
        app: its Celery app.
        settings: of the worker.
        slots: how many chunks it runs at once.
    """

    def __init__(self, name: str, app: Celery, settings: Settings, slots: int) -> None:
        client = connect(settings.broker_url or "")
        device_name = describe_device(settings.device)  # for a GPU it runs nvidia-smi, which may take a second
        self.name = name
        self.queues = frozenset(queues_of(settings))
        self.store = JobStore(client, settings.result_ttl, settings.may_open)
        self.ledger = Ledger(client, settings.lease_seconds)
        self.device = DeviceClient(settings, TokenBudgetCache(client, device_name))
        self.leases = LeaseRenewer(self.ledger, settings.renew_seconds)
        self.refusals = Refusals(self.ledger, name)
        self.tickets = TicketSender(client)
        self.live_workers = LiveWorkers(client)
        self.affinity = ModelAffinity(name, lambda: self.device.status, self.live_workers.now)
        self.heartbeat = HeartbeatThread(name, client, settings, self.device, device_name, slots)
        self.reaper = Reaper(name, self.store, self.ledger, settings)
        self.job_events = JobEvents(name, app, self.store)
        self.notifier = Notifier(name, self.store, settings)
        self.tuner = FineTuner(settings, self.store, app)
        self.stopping = CancelToken()

    def start(self, stopped: Callable[[], bool]) -> None:
        """Start everything that runs alongside the tickets; models are preloaded when this returns.

        Raises:
            Cancelled: `stopped` returned True meanwhile: the worker was asked to stop.
            ModelError: a preload is not available.
            WorkerError: the device cannot be used.
        """
        self.heartbeat.start()
        try:
            if self.tuner.runs_other_tasks:
                self.device.start(stopped)
        except BaseException:
            self.device.stop()
            self.heartbeat.stop()
            raise
        self.heartbeat.set_state("ready")
        self.leases.start()
        self.tickets.start()
        self.reaper.start()
        self.job_events.start()
        self.notifier.start()

    def stop(self, grace: float) -> None:
        """Stop in order: the running chunks get `grace` seconds to finish, then they are released."""
        self.heartbeat.set_state("stopping")
        self.stopping.cancel("stopping")
        self.tickets.stop()
        if not self.leases.wait_until_idle(grace):
            logger.info("grace period of %.0f s is over: releasing the running chunks", grace)
            self.leases.cancel_all()
            self.leases.wait_until_idle(10.0)
        self.job_events.stop()
        self.notifier.stop()
        self.reaper.stop()
        self.leases.stop()
        self.device.stop()
        self.heartbeat.stop()
