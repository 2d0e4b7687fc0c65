"""A worker's own room: what its turns use, opened before the first turn and closed after the last.

The other room, the device process, is behind `device` (`workers.device.client.client`).
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from celery import Celery

from common.queue.jobs import JobStore
from common.queue.ledger import Ledger
from common.redis.client import connect
from common.settings import Settings
from workers.celery_worker.heartbeat import HeartbeatThread
from workers.celery_worker.live_workers import LiveWorkers
from workers.celery_worker.meter import Meter
from workers.celery_worker.model_affinity import Affinity
from workers.celery_worker.reaper import Reaper
from workers.celery_worker.refusals import Refusals
from workers.celery_worker.tickets import TicketSender
from workers.device.client.batch_size_cache import BatchSizeCache
from workers.device.client.client import DeviceClient
from workers.devices import describe_device, queues_of
from workers.leases import LeaseRenewer
from workers.training.controller.finetuner import FineTuner

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What every turn of a worker uses."""

    name: str
    app: Celery
    queues: frozenset[str]  #: those whose jobs it serves
    store: JobStore
    ledger: Ledger
    device: DeviceClient
    leases: LeaseRenewer
    refusals: Refusals
    tickets: TicketSender
    peers: LiveWorkers
    affinity: Affinity
    meter: Meter
    pulse: HeartbeatThread
    reaper: Reaper
    tuner: FineTuner
    stopping: threading.Event


def make_room(name: str, app: Celery, settings: Settings, slots: int) -> WorkerContext:
    """Return a room that is not yet open; `slots` is how many turns it takes at once."""
    client = connect(settings.broker_url or "")
    store, ledger = JobStore(client, settings.result_ttl, settings.may_open), Ledger(client, settings.lease)
    device_name = describe_device(settings.device)  # for a GPU it asks nvidia-smi, which may take a second
    device = DeviceClient(settings, BatchSizeCache(client, device_name))
    meter, peers = Meter(), LiveWorkers(client)
    return WorkerContext(
        name=name,
        app=app,
        queues=frozenset(queues_of(settings)),
        store=store,
        ledger=ledger,
        device=device,
        leases=LeaseRenewer(ledger, settings.renew),
        refusals=Refusals(ledger, name),
        tickets=TicketSender(app),
        peers=peers,
        affinity=Affinity(name, lambda: device.holding, peers.now),
        meter=meter,
        pulse=HeartbeatThread(name, client, settings, device, meter, device_name=device_name, slots=slots),
        reaper=Reaper(name, app, store, ledger, settings),
        tuner=FineTuner(settings, store, app),
        stopping=threading.Event(),
    )


def start_context(context: WorkerContext, cancelled: Callable[[], bool]) -> None:
    """Start all that works beside the turns; models are preloaded when this returns.

    Raises:
        Cancelled: `cancelled` became true meanwhile: the worker was asked to stop.
        ModelError: a preload that cannot be had.
        WorkerError: the device cannot be used.
    """
    context.pulse.start()
    try:
        if context.tuner.runs_other_tasks:
            context.device.start(cancelled)
    except BaseException:
        context.device.stop()
        context.pulse.stop()
        raise
    context.pulse.set_state("ready")
    context.leases.start()
    context.tickets.start()
    context.reaper.start()


def stop_context(context: WorkerContext, grace: float) -> None:
    """End in order: the turns in hand get `grace` seconds to finish, then give their chunks back."""
    context.pulse.set_state("stopping")
    context.stopping.set()
    context.tickets.stop()
    if not context.leases.wait_until_idle(grace):
        logger.info("%.0f s of grace are over: giving back the chunks in hand", grace)
        context.leases.cancel_all()
        context.leases.wait_until_idle(10.0)
    context.reaper.stop()
    context.leases.stop()
    context.device.stop()
    context.pulse.stop()
