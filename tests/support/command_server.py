"""A fork server for `producer` commands: it imports once what commands import, and forks for each of them.

A command is a process of its own as ever, with its own environment, directory and standard streams, whose interpreter
ends as usual; only the second of imports is saved. `CommandServer` is the client, `python -P command_server.py FD` the
server, which ends with the test process.
"""

import array
import atexit
import contextlib
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
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

#: More than this does not fit into a pipe at once: such a command is started as usual.
LARGEST_INPUT = 60_000
#: What Python and libraries read of the environment when they are imported: with other values of these a command is
#: started as usual.
READ_AT_IMPORT = ("PYTHON", "LC_", "LANG", "OMP_", "HF_")
#: What is imported once.
PACKAGES = ("producer", "producer.cli.commands", "producer.submit", "producer.outputs", "common.inputs")
MODULES = ("common.broker.app", "encodings.idna", "rich.live", "rich.pager", "rich.progress", "rich.table")
_LARGEST_REQUEST = 1 << 20


def _read_at_import(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name.startswith(READ_AT_IMPORT) and name != "HF_HOME"}


class CommandServer:
    """A server, and the way to it. Threads may use it at the same time."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._read_at_import = _read_at_import(environ)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-P", __file__, str(theirs.fileno())]
            subprocess.Popen(command, env=dict(environ), pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)

    def serves(self, environ: Mapping[str, str], data: bytes) -> bool:
        """Whether a command with this environment and input does here what it does in a new interpreter."""
        return _read_at_import(environ) == self._read_at_import and len(data) <= LARGEST_INPUT

    def run(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        environ: Mapping[str, str],
        directory: Path,
        data: bytes,
        seconds: float,
    ) -> "subprocess.CompletedProcess[bytes]":
        """Do what `subprocess.run` does with `python -P -m module arguments`.

        Raises:
            subprocess.TimeoutExpired: it took longer, and was killed.
        """
        request = {"module": module, "arguments": arguments, "environ": dict(environ), "directory": str(directory)}
        read, write = os.pipe()
        with os.fdopen(write, "wb") as pipe:
            pipe.write(data)
        ours, theirs = socket.socketpair()
        with os.fdopen(read, "rb") as stdin, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, ours:
            with theirs:
                files = array.array("i", [stdin.fileno(), out.fileno(), err.fileno(), theirs.fileno()])
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)]
                self._socket.sendmsg([json.dumps(request).encode()], rights)
            answers = ours.makefile("r")
            pid = int(answers.readline())
            if not select.select([ours], [], [], seconds)[0]:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired([module, *arguments], seconds)
            status = int(answers.readline())
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess([module, *arguments], status, out.read(), err.read())


class _Server:
    """The other end: one thread, which forks."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._running: dict[int, tuple[int, socket.socket]] = {}  #: pidfd -> process, and who waits for it

    def serve(self) -> dict[str, object] | None:
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
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with waiting, contextlib.suppress(OSError):
            waiting.sendall(f"{status}\n".encode())
        os.close(descriptor)

    def _accept(self) -> dict[str, object] | None:
        """Fork for the next request: return it in the new process, an empty one in this, None at the end."""
        data, files, _, _ = socket.recv_fds(self._requests, _LARGEST_REQUEST, 4)
        if not data:
            return None
        if pid := os.fork():
            waiting = socket.socket(fileno=files.pop())
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
        return json.loads(data)


def _become(request: dict[str, object]) -> None:
    """Make of this process what `python -P -m module` starts with."""
    os.environ.clear()
    os.environ.update(request["environ"])
    os.chdir(request["directory"])
    sys.argv = [request["module"], *request["arguments"]]
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        old = getattr(sys, name)
        stream = os.fdopen(old.fileno(), mode, encoding=old.encoding, errors=old.errors, closefd=False)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.stderr.reconfigure(line_buffering=True)


def _run(module: str) -> int:
    """Run a module as a program; return its exit status."""
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
    for package in PACKAGES:
        for module in pkgutil.iter_modules(import_module(package).__path__, f"{package}."):
            import_module(module.name)
    for name in MODULES:
        import_module(name)
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    assert len(set(threads) - {"jemalloc_bg_thd"}) == 1, f"a fork would lose some of {threads}"
    gc.collect()
    gc.freeze()  # else the first collection in each process copies all the pages
    requests = socket.socket(fileno=int(sys.argv[1]))
    request = _Server(requests).serve()
    if request:
        _become(request)
        _exit(_run(request["module"]))


if __name__ == "__main__":
    _main()
