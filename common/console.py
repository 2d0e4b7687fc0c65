"""A command's standard streams, and how it ends: with one sentence and an exit status, whatever went wrong."""

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from common.errors import HugqueueError
from common.text import replace_control_chars

#: Exit status after Ctrl-C.
INTERRUPTED = 130

_tracebacks = False


class _StdoutError(HugqueueError):
    """Raised when standard output takes no more, but for a reader that has enough (`BrokenPipeError`)."""


class _Output(io.FileIO):
    """Standard output, whose errors are told from those of files."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            _drop_output()  # Python would try once more at exit, and complain
            raise _StdoutError(f"Cannot write to standard output: {error.strerror}.") from error


def prepare_streams() -> None:
    """Have all three standard streams, and write what a locale cannot encode as escapes.

    A stream that its parent closed would leave its number to the next file or socket, which would then get our words.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # opened so that writing to stdout fails and is told; stderr has nobody to tell
            os.set_inheritable(os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY), True)
    if sys.stderr is None:
        sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115 - for good
    if sys.stdout is sys.__stdout__:  # else a program has its own
        encoding = getattr(sys.stdout, "encoding", None)
        raw = _Output(1, "w", closefd=False)
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=raw.isatty())


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """End the program with one sentence and an exit status where the block raises what a user can mend.

    That is every error of ours, a path that the system refuses, and a standard output that takes no more. Ctrl-C ends
    it without a word.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here, where a failure can still be told
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except HugqueueError as error:
        _end(str(error), error.exit_status)
    except BrokenPipeError as error:
        # `producer results JOB | head`: the reader has enough.
        _drop_output()
        before = error.__context__
        sys.exit(before.code if isinstance(before, SystemExit) else 0)
    except OSError as error:
        if error.filename is None:
            raise
        _end(f"{os.fsdecode(error.filename)}: {error.strerror}.", 1)


def print_stderr(text: str) -> None:
    """Write a line to stderr; where that takes nothing, the line is lost and the command goes on."""
    try:
        sys.stderr.write(f"{replace_control_chars(text)}\n")
        sys.stderr.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def show_tracebacks() -> None:
    """Show, from now on, the traceback of an error before its sentence: for who looks for its cause."""
    global _tracebacks  # noqa: PLW0603 - a program has one way of ending
    _tracebacks = True


def _end(text: str, status: int) -> None:
    if _tracebacks:
        print_stderr(traceback.format_exc())
    print_stderr(f"Error: {text}")
    sys.exit(status)


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
