"""A worker's own room: what its turns use, opened before the first turn and closed after the last.

The other room, the device process, is behind `device` (`workers.device.client.client`).
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from celery import Celery

from common.queue.jobs import Store
from common.queue.ledger import Ledger
from common.redis.client import connect
from common.settings import Settings
from workers.celery_worker.heartbeat import Pulse
from workers.celery_worker.live_workers import Peers
from workers.celery_worker.meter import Meter
from workers.celery_worker.model_affinity import Affinity
from workers.celery_worker.reaper import Reaper
from workers.celery_worker.refusals import Refusals
from workers.celery_worker.tickets import TicketSender
from workers.device.client.batch_size_cache import Budgets
from workers.device.client.client import DeviceProcess
from workers.devices import describe, queues_of
from workers.leases import LeaseKeeper
from workers.training.controller.finetuner import FineTuner

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Room:
    """What every turn of a worker uses."""

    name: str
    app: Celery
    queues: frozenset[str]  #: those whose jobs it serves
    store: Store
    ledger: Ledger
    device: DeviceProcess
    leases: LeaseKeeper
    refusals: Refusals
    tickets: TicketSender
    peers: Peers
    affinity: Affinity
    meter: Meter
    pulse: Pulse
    reaper: Reaper
    tuner: FineTuner
    stopping: threading.Event


def make_room(name: str, app: Celery, settings: Settings, slots: int) -> Room:
    """Return a room that is not yet open; `slots` is how many turns it takes at once."""
    client = connect(settings.broker_url or "")
    store, ledger = Store(client, settings.result_ttl, settings.may_open), Ledger(client, settings.lease)
    device_name = describe(settings.device)  # for a GPU it asks nvidia-smi, which may take a second
    device = DeviceProcess(settings, Budgets(client, device_name))
    meter, peers = Meter(), Peers(client)
    return Room(
        name=name,
        app=app,
        queues=frozenset(queues_of(settings)),
        store=store,
        ledger=ledger,
        device=device,
        leases=LeaseKeeper(ledger, settings.renew),
        refusals=Refusals(ledger, name),
        tickets=TicketSender(app),
        peers=peers,
        affinity=Affinity(name, lambda: device.holding, peers.now),
        meter=meter,
        pulse=Pulse(name, client, settings, device, meter, device_name=device_name, slots=slots),
        reaper=Reaper(name, app, store, ledger, settings),
        tuner=FineTuner(settings, store, app),
        stopping=threading.Event(),
    )


def open_room(room: Room, given_up: Callable[[], bool]) -> None:
    """Start all that works beside the turns; models are preloaded when this returns.

    Raises:
        Cancelled: `given_up` became true meanwhile: the worker was asked to stop.
        ModelError: a preload that cannot be had.
        WorkerError: the device cannot be used.
    """
    room.pulse.start()
    try:
        if room.tuner.shares_room:
            room.device.start(given_up)
    except BaseException:
        room.device.stop()
        room.pulse.stop()
        raise
    room.pulse.become("ready")
    room.leases.start()
    room.tickets.start()
    room.reaper.start()


def close_room(room: Room, grace: float) -> None:
    """End in order: the turns in hand get `grace` seconds to finish, then give their chunks back."""
    room.pulse.become("stopping")
    room.stopping.set()
    room.tickets.stop()
    if not room.leases.wait_until_idle(grace):
        logger.info("%.0f s of grace are over: giving back the chunks in hand", grace)
        room.leases.give_up_all()
        room.leases.wait_until_idle(10.0)
    room.reaper.stop()
    room.leases.stop()
    room.device.stop()
    room.pulse.stop()
