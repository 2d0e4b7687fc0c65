"""A fork server for `producer` commands and workers: it imports once what they import, and forks for each of them.

Each is a process of its own as ever, with its own environment, directory, standard streams, and command line as `ps`
shows it; only the seconds of imports are saved. `CommandServer` is the client, `python -P command_server.py FD` the
server, which ends with the test process. What is forked here forks supervisors and Celery processes in turn; device
processes are started as usual, as are servers and trainers.
"""

import array
import atexit
import contextlib
import ctypes
import gc
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

#: What Python and libraries read of the environment when they are imported: with other values of these a command is
#: started as usual.
READ_AT_IMPORT = ("PYTHON", "LC_", "LANG", "OMP_", "HF_")
#: What is imported once: never `huggingface_hub`, which reads HF_HOME, nor torch, which Celery processes are to lack.
PACKAGES = (
    "producer",
    "producer.cli.commands",
    "producer.submit",
    "producer.outputs",
    "common.inputs",
)
MODULES = (
    *("celery.bin.celery", "celery.concurrency.thread", "celery.worker.worker", "celery.worker.consumer"),
    *("common.broker.app", "encodings.idna", "rich.live", "rich.pager", "rich.progress", "rich.table"),
    *("producer.embedded.attach", "producer.embedded.worker", "workers.supervisor"),
    *("workers.celery_worker.context", "workers.celery_worker.process_chunk"),
)
#: What is forked in turn when a forked process starts it.
FORKED = ("producer.embedded.daemon", "workers.cli", "workers.app")
#: Room for the command lines and environments that `ps` and psutil show.
_PADDING = 16_000
_LARGEST_REQUEST = 1 << 20


def _read_at_import(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name.startswith(READ_AT_IMPORT) and name != "HF_HOME"}


class CommandServer:
    """A server, and the way to it. Threads may use it at the same time."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._read_at_import = _read_at_import(environ)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-P", __file__, str(theirs.fileno()), "-" * _PADDING]
            padded = {**environ, "PADDING": "-" * _PADDING}
            subprocess.Popen(command, env=padded, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)

    def popen(self, *command: str, env: Mapping[str, str], **options: Any) -> "subprocess.Popen[Any]":
        """Start `python -P -m COMMAND`, here where it does here what it does in a new interpreter."""
        words = [sys.executable, "-P", "-m", *command]
        if _read_at_import(env) == self._read_at_import:
            return _ServedPopen(self, words, env=env, **options)
        return subprocess.Popen(words, env=env, **options)

    def request(self, streams: Sequence[int], **request: Any) -> socket.socket:
        """Ask for a process with these standard streams; return a socket with its id, and later its wait status."""
        ours, theirs = socket.socketpair()
        with theirs:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [*streams, theirs.fileno()]))]
            self._socket.sendmsg([json.dumps(request, default=str).encode()], rights)
        return ours


class _ServedPopen(subprocess.Popen):  # type: ignore[type-arg]
    """A `Popen` of a process that a server starts, and waits for."""

    def __init__(self, server: CommandServer, command: Sequence[str], **options: Any) -> None:
        self._server = server
        super().__init__(command, **options)

    def _execute_child(self, args: Any, *rest: Any) -> None:
        directory, environ, new_session = rest[4] or Path.cwd(), dict(rest[5]), rest[20]
        streams = [at if stream == -1 else stream for at, stream in enumerate((rest[9], rest[12], rest[14]))]
        request = {"arguments": args[3:], "environ": environ, "directory": directory, "new_session": new_session}
        self._socket = self._server.request(streams, **request)
        self._answers = self._socket.makefile("r")
        self.pid = int(self._answers.readline())
        self._child_created = True
        self._close_pipe_fds(*rest[9:15])

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if not select.select([self._socket], [], [], 0 if wait_flags & os.WNOHANG else None)[0]:
            return 0, 0
        status = int(self._answers.readline())
        self._answers.close()
        self._socket.close()
        return self.pid, status

    def __del__(self, *_: Any) -> None:
        """Do not ask once more: the server reaps the process, and the socket may have been collected with this."""

    def _internal_poll(self, _deadstate: int | None = None, **_: Any) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(False):
            try:
                pid, status = self._try_wait(os.WNOHANG)
                if pid:
                    self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


class _Server:
    """The other end: one thread, which forks."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._running: dict[int, tuple[int, socket.socket]] = {}  #: pidfd -> process, and who waits for it

    def serve(self) -> dict[str, Any] | None:
        """Return the request in each process forked for one, and None when the client has gone."""
        while True:
            ready, _, _ = select.select([self._requests, *self._running], [], [])
            for descriptor in ready:
                if isinstance(descriptor, int):
                    self._tell_end(descriptor)
                elif (request := self._accept()) is None or request:
                    return request

    def _tell_end(self, descriptor: int) -> None:
        pid, waiting = self._running.pop(descriptor)
        _, status = os.waitpid(pid, 0)
        with waiting, contextlib.suppress(OSError):
            waiting.sendall(f"{status}\n".encode())
        os.close(descriptor)

    def _accept(self) -> dict[str, Any] | None:
        """Fork for the next request: return it in the new process, an empty one in this, None at the end."""
        data, files, _, _ = socket.recv_fds(self._requests, _LARGEST_REQUEST, 4)
        if not data:
            return None
        if pid := os.fork():
            waiting = socket.socket(fileno=files.pop())
            with contextlib.suppress(OSError):
                waiting.sendall(f"{pid}\n".encode())
            self._running[os.pidfd_open(pid)] = (pid, waiting)
            for descriptor in files:
                os.close(descriptor)
            return {}
        for number, descriptor in enumerate(files[:3]):
            os.dup2(descriptor, number)
        for descriptor in [*files, *self._running]:
            os.close(descriptor)
        for _, waiting in self._running.values():
            waiting.close()
        self._requests.close()
        request: dict[str, Any] = json.loads(data)
        return request


class _ForkingPopen(subprocess.Popen):  # type: ignore[type-arg]
    """Forks for the programs that processes of one thread start; all others are started as usual."""

    def _execute_child(self, args: Any, *rest: Any) -> None:
        forked = list(args[:3]) == [sys.executable, "-P", "-m"] and args[3] in FORKED
        if not forked or threading.active_count() > 1 or _has_broker_connections():
            super()._execute_child(args, *rest)
            return
        self.pid = os.fork()
        if self.pid:
            self._child_created = True
            self._close_pipe_fds(*rest[9:15])
            return
        _, prepare, _, _, directory, environ, *_ = rest
        streams, new_session = (rest[9], rest[12], rest[14]), rest[20]
        for number, stream in enumerate(streams):
            if stream not in (-1, number):
                os.dup2(stream, number)
        gc.freeze()  # nothing of the parent's is ever freed, nor are descriptors with the numbers of its own closed
        os.closerange(3, 1 << 16)
        atexit._clear()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if prepare is not None:
            prepare()
        directory, environ = directory or Path.cwd(), os.environ if environ is None else environ
        _become({"arguments": args[3:], "environ": dict(environ), "directory": directory, "new_session": new_session})


def _has_broker_connections() -> bool:
    """Whether this process has used kombu's global pools.

    In a fork, Celery would reset them, and so close descriptors of the same numbers that belong to others by then. A
    command that starts a killed daemon again has sent tickets before.
    """
    pools: Any = sys.modules.get("kombu.pools")
    return pools is not None and bool(pools.connections or pools.producers)


def _become(request: Mapping[str, Any]) -> NoReturn:
    """Do in this process what `python -P -m MODULE` does."""
    if request["new_session"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(request["environ"])
    os.chdir(request["directory"])
    sys.argv = list(request["arguments"])
    _show([sys.executable, "-P", "-m", *sys.argv], [f"{name}={value}" for name, value in os.environ.items()])
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        old = getattr(sys, name)
        stream = os.fdopen(old.fileno(), mode, encoding=old.encoding, errors=old.errors, closefd=False)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.stderr.reconfigure(line_buffering=True)
    subprocess.Popen = _ForkingPopen  # type: ignore[misc]
    _exit(_run(sys.argv[0]))


def _show(arguments: Sequence[str], environ: Sequence[str]) -> None:
    """Write a command line and an environment where `ps` and psutil read them."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    for begin, words in ((45, arguments), (47, environ)):  # fields 48 to 51 of the file
        start, end = int(fields[begin]), int(fields[begin + 1])
        text = os.fsencode("".join(f"{word}\0" for word in words))[: end - start - 1]
        ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


def _run(module: str) -> int:
    """Run a module as a program; return its exit status."""
    sys.modules.pop(module, None)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    except BaseException:  # noqa: BLE001 - as the interpreter does with what nobody caught
        traceback.print_exc()
        return 1
    return 0


def _exit(status: int) -> NoReturn:
    """End as an interpreter does, but for freeing every object, which takes longer than most commands."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def _main() -> None:
    requests = socket.socket(fileno=int(sys.argv[1]))
    for package in PACKAGES:
        for module in pkgutil.iter_modules(import_module(package).__path__, f"{package}."):
            import_module(module.name)
    for name in MODULES:
        import_module(name)
    assert not {"huggingface_hub", "torch", "workers.app"} & sys.modules.keys()
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    assert len(set(threads) - {"jemalloc_bg_thd"}) == 1, f"a fork would lose some of {threads}"
    gc.collect()
    gc.freeze()  # else the first collection in each process copies all the pages
    request = _Server(requests).serve()
    if request:
        _become(request)


if __name__ == "__main__":
    _main()
