"""Standard streams and exit of the commands: errors end them with one sentence and an exit status."""

import atexit
import contextlib
import gc
import io
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from common.display_text import replace_control_chars
from common.errors import HugqueueError

#: Exit status after Ctrl-C.
INTERRUPTED = 130
#: Objects made and kept before Python looks for garbage; its default is 700, and loading a command makes 110,000.
_COLLECT_AFTER = 200_000

_tracebacks = False


class _StdoutError(HugqueueError):
    """Raised when standard output cannot be written, except when its reader has closed it (`BrokenPipeError`)."""


class _Stdout(io.FileIO):
    """Standard output, whose errors can be distinguished from those of files."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            _discard_stdout()  # Python would try again at exit, and complain
            raise _StdoutError(f"Cannot write to standard output: {error.strerror}.") from error


class ExitOnError:
    """Mixin for a `click.Group` whose commands end with one sentence, not a traceback, if the user can fix an error."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        _collect_rarely()
        prepare_streams()
        with exit_on_error():
            return super().main(*args, **kwargs)  # type: ignore[misc]

    def invoke(self, ctx: Any) -> Any:
        """Run a command; Click would turn a broken pipe and Ctrl-C into exit status 1."""
        with exit_on_error():
            return super().invoke(ctx)  # type: ignore[misc]


def _collect_rarely() -> None:
    """Keep Python from looking for garbage among loaded modules, over and over while they load, and as it exits.

    That takes a third of a short command. What a long one makes and drops is freed by its reference counts.
    """
    gc.set_threshold(_COLLECT_AFTER, 10, 10)
    atexit.register(gc.freeze)


def prepare_streams() -> None:
    """Open any closed standard stream, and write characters that the locale cannot encode as escapes.

    A file or socket would otherwise get the number of a closed stream, and receive what is printed.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # stdout is opened for reading: writing fails and is reported; a missing stderr is ignored
            os.set_inheritable(os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY), True)
    if sys.stderr is None:
        sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115 - stays open
    if sys.stdout is sys.__stdout__:  # otherwise the program has replaced it
        encoding = getattr(sys.stdout, "encoding", None)
        raw = _Stdout(1, "w", closefd=False)
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=raw.isatty())


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """Exit with one sentence and a status if the block raises an error that the user can fix.

    These are hugqueue's errors, paths that the system refuses, and a standard output that cannot be written. Ctrl-C
    exits without a message.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here, where a failure can still be reported
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except HugqueueError as error:
        _exit(str(error), error.exit_status)
    except BrokenPipeError as error:
        # `producer results JOB | head`: the reader has closed the pipe.
        _discard_stdout()
        before = error.__context__
        sys.exit(before.code if isinstance(before, SystemExit) else 0)
    except OSError as error:
        if error.filename is None:
            raise
        _exit(f"{os.fsdecode(error.filename)}: {error.strerror}.", 1)


def print_stderr(text: str) -> None:
    """Write a line to stderr; if that fails, the line is lost and the command continues."""
    try:
        sys.stderr.write(f"{replace_control_chars(text)}\n")
        sys.stderr.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def show_tracebacks() -> None:
    """Show the traceback of an error before its sentence from now on."""
    global _tracebacks  # noqa: PLW0603 - one setting per process
    _tracebacks = True


def _exit(text: str, status: int) -> None:
    if _tracebacks:
        print_stderr(traceback.format_exc())
    print_stderr(f"Error: {text}")
    sys.exit(status)


def _discard_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
