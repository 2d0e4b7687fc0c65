"""Logging: untrusted texts in a message cannot forge a line of the log or control a terminal."""

import logging
import sys
import traceback
from typing import Any

from common.display_text import one_line, replace_control_chars

FORMAT = "%(asctime)s %(levelname)s %(message)s"


class _Record(logging.LogRecord):
    """A log record whose message is one line, and whose traceback is indented, since it quotes an exception."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.exc_info and self.exc_info[0] is not None:
            self.exc_text = "    " + _indented("".join(traceback.format_exception(*self.exc_info)))

    def getMessage(self) -> str:  # noqa: N802 - logging's name
        """Return the message; it has several lines only if the format string has."""
        text = super().getMessage()
        return _indented(text) if "\n" in str(self.msg) else one_line(text)


def _indented(text: str) -> str:
    return "\n    ".join(map(replace_control_chars, text.splitlines()))


def configure_logging(level: int | str = logging.INFO, form: str = FORMAT) -> None:
    """Log to stderr, with safe records for all handlers of the process."""
    use_safe_records()
    logging.basicConfig(level=level, format=form, stream=sys.stderr)


def use_safe_records() -> None:
    """Make all log records of this process safe to print; the handlers stay as they are."""
    logging.setLogRecordFactory(_Record)
