"""Runners for tests, found by their entry points when `tests/plugins` is on PYTHONPATH. None needs torch.

| task | what it does |
|---|---|
| `test-echo` | gives the text in capitals; `-p fail=TEXT` fails the records of that text, with \
`-p fail_while=` as long as that file is there; each batch takes \
`-p batch_seconds=`, and `-p batch_log=` is a file that gets a line at its end |
| `test-wait` | as echo, after `-p seconds=` per chunk, or once the file `-p until=` is there (only the chunk with \
`-p until_text=`, if that is given); ticks meanwhile, \
every `-p tick=` seconds; `-p log=` is a file that gets each text as it is run |
| `test-crash` | as echo, but for some texts: see `Crash`; `-p batch=` records at a time (4) |
| `test-load` | as echo, but loading takes, kills or fails: see `Load` |
| `test-suicide` | dies whenever it is loaded |
| `test-model` | as echo, with a model: `-p memory_error=true` cannot be loaded for lack of memory |
| `test-large` | as model, but only one of them fits into memory; `-p load_log=` is a file \
that gets a line for each load, `-p text_log=` one that gets each text |
| `test-vector` | as crash, its outputs three float32 each |
| `test-short` | gives one outcome too few |
| `test-unwritable` | gives an output without a JSON form for the text "object", and one that kills its encoder \
for the text "crash" |
| `test-ahead` | prepares, and gives for each text the thread that did so; what runs the text "wait" waits until \
the file `-p prepared=` is there, which preparing "there" makes; preparing "crash" is a segfault, "raise" raises |
"""

import ctypes
import os
import signal
import threading
import time
import weakref
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from common.errors import ModelError, WorkerError
from common.records import Failure, Outcome
from workers.inference.core.runner import PreparingRunner, Runner


class Echo(Runner):
    needs_model = False

    def __init__(self, task, model, device, options):
        self.task, self.model, self.device = task, model, device

    def run(self, inputs, params, monitor):
        size = int(params.get("batch", 4))
        outcomes = []
        for start in range(0, len(inputs), size):
            batch = inputs[start : start + size]
            monitor.batch(range(start, start + len(batch)))
            time.sleep(float(params.get("batch_seconds", 0)))
            outcomes += [self.one(text, params, monitor) for text in batch]
            if "batch_log" in params:
                with Path(params["batch_log"]).open("a") as log:
                    log.write(f"{time.time()}\n")
        return outcomes

    def one(self, text, params, monitor):
        if text == params.get("fail", object()) and Path(params.get("fail_while", "/")).exists():
            return Outcome(failure=Failure("test_failure", f"asked to fail {text!r}"))
        return Outcome(text.upper())


class Wait(Echo):
    def run(self, inputs, params, monitor):
        monitor.batch(range(len(inputs)))
        end = time.monotonic() + float(params.get("seconds", 0))
        until = Path(params["until"]) if params.get("until_text", inputs[0]) in inputs and "until" in params else None
        if "started" in params:  # a file that says the chunk is at work
            Path(params["started"]).touch()
        while time.monotonic() < end or (until and not until.exists()):
            time.sleep(min(float(params.get("tick", 0.02)), max(end - time.monotonic(), 0.02)))
            monitor.tick()
        if "log" in params:
            with Path(params["log"]).open("a") as log:  # one write: lines of several workers do not mix
                log.write("".join(f"{text}\n" for text in inputs))
        return super().run(inputs, params, monitor)


class Crash(Echo):
    """Texts: crash (segfault), oom-kill (SIGKILL), exit, hang, memory, raise, gpu-lost; `once:FILE` kills once.

    `kill-worker` kills the Celery process, and with it this one; `hang-early` hangs before the first batch.
    """

    def run(self, inputs, params, monitor):
        if "hang-early" in inputs:
            self.do_hang("")
        return super().run(inputs, params, monitor)

    def one(self, text, params, monitor):
        action = getattr(self, "do_" + text.partition(":")[0].replace("-", "_"), None)
        if action:
            action(text.partition(":")[2])
        return super().one(text, params, monitor)

    def do_crash(self, _):
        ctypes.string_at(0)

    def do_oom_kill(self, _):
        os.kill(os.getpid(), signal.SIGKILL)

    def do_kill_worker(self, _):
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)

    def do_exit(self, _):
        os._exit(3)

    def do_hang(self, _):
        while True:
            time.sleep(1)

    def do_memory(self, _):
        raise MemoryError("asked for too much")

    def do_raise(self, _):
        raise ValueError("asked to raise")

    def do_gpu_lost(self, _):
        if self.device != "cpu":
            import torch

            torch.zeros(3, device=self.device)[torch.tensor([9], device=self.device)]  # asserts in the kernel
            torch.cuda.synchronize()
        raise RuntimeError("CUDA error: device-side assert triggered")

    def do_once(self, path):
        if not Path(path).exists():
            Path(path).touch()
            os.kill(os.getpid(), signal.SIGSEGV)


class Load(Echo):
    """Load parameters: load_seconds=, load_error= and load_raise= (texts); load_log=FILE gets a line for each load.
    A preload takes the seconds from $LOAD_SECONDS.

    While FILE is there, load_kill=FILE dies of SIGKILL, load_crash=FILE of a segmentation fault, load_trouble=FILE
    is a fault of the worker, and load_stuck=FILE goes on for ever. load_kill=$NAME takes the name of FILE from the
    environment of the worker, and so does load_stuck. load_write=FILE writes there while it takes its seconds.
    """

    load_params = frozenset(
        {
            *("load_seconds", "load_log", "load_kill", "load_crash", "load_error", "load_raise", "load_trouble"),
            *("load_stuck", "load_write"),
        }
    )

    def __init__(self, task, model, device, options):
        super().__init__(task, model, device, options)
        if "load_log" in options.params:
            with Path(options.params["load_log"]).open("a") as log:
                log.write("loaded\n")
        end = time.monotonic() + float(options.params.get("load_seconds", os.environ.get("LOAD_SECONDS", "0")))
        while "load_write" in options.params and time.monotonic() < end:
            Path(options.params["load_write"]).write_bytes(bytes(2**21))
            time.sleep(0.05)
        time.sleep(max(0.0, end - time.monotonic()))
        while Path(os.path.expandvars(options.params.get("load_stuck", "/nonexistent"))).exists():
            time.sleep(0.1)
        if Path(os.path.expandvars(options.params.get("load_kill", "/nonexistent"))).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if Path(options.params.get("load_crash", "/nonexistent")).exists():
            ctypes.string_at(0)
        if Path(options.params.get("load_trouble", "/nonexistent")).exists():
            raise WorkerError("hub_unavailable", "asked to have trouble")
        if "load_error" in options.params:
            raise ModelError("test_load", options.params["load_error"])
        if "load_raise" in options.params:
            raise ValueError(options.params["load_raise"])

    def one(self, text, params, monitor):
        if text == "crash":
            ctypes.string_at(0)
        return super().one(text, params, monitor)


class Suicide(Echo):
    def __init__(self, task, model, device, options):
        os.kill(os.getpid(), signal.SIGKILL)


class Model(Echo):
    needs_model = True
    load_params = frozenset({"memory_error"})

    def __init__(self, task, model, device, options):
        super().__init__(task, model, device, options)
        if options.params.get("memory_error"):
            raise MemoryError("no room")

    def one(self, text, params, monitor):
        return Outcome(f"{self.model.name}: {text}")

    def memory_bytes(self):
        return 1000


class Large(Model):
    load_params = frozenset({"load_log"})
    loaded: ClassVar = weakref.WeakSet()

    def __init__(self, task, model, device, options):
        super().__init__(task, model, device, options)
        if self.loaded:
            raise MemoryError("no room for two")
        self.loaded.add(self)
        if "load_log" in options.params:
            with Path(options.params["load_log"]).open("a") as log:
                log.write(f"{model.name}\n")

    def one(self, text, params, monitor):
        if "text_log" in params:
            with Path(params["text_log"]).open("a") as log:
                log.write(f"{text}\n")
        return super().one(text, params, monitor)


class Vector(Crash):
    def output_type(self, params):
        return pa.list_(pa.float32(), 3)

    def one(self, text, params, monitor):
        super().one(text, params, monitor)
        return Outcome([1.0, 2.0, float(len(text))])


class Short(Echo):
    def run(self, inputs, params, monitor):
        return super().run(inputs, params, monitor)[:-1]


class Killer:
    def tolist(self):
        ctypes.string_at(0)


class Unwritable(Wait):
    def one(self, text, params, monitor):
        outputs = {"object": object, "crash": Killer}
        return Outcome(outputs[text]()) if text in outputs else super().one(text, params, monitor)


class Ahead(PreparingRunner):
    needs_model = False

    def __init__(self, task, model, device, options):
        pass

    def prepare(self, inputs, params):
        if "crash" in inputs:
            ctypes.string_at(0)
        if "raise" in inputs:
            raise ValueError("asked to raise")
        if "there" in inputs:
            Path(params["prepared"]).touch()
        return inputs, params, threading.current_thread().name

    def run_prepared(self, prepared, monitor):
        inputs, params, thread = prepared
        monitor.batch(range(len(inputs)))
        while "wait" in inputs and not Path(params["prepared"]).exists():
            time.sleep(0.01)
            monitor.tick()
        return [Outcome(thread) for _ in inputs]
