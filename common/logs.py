"""Logs of our own processes, in which no text that others wrote can pose as a line of ours or move the cursor."""

import logging
import sys
import traceback
from typing import Any

from common.text import one_line, replace_control_chars

FORMAT = "%(asctime)s %(levelname)s %(message)s"


class _Record(logging.LogRecord):
    """A record whose message is one line, and whose traceback is indented: it holds what an exception says."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.exc_info and self.exc_info[0] is not None:
            self.exc_text = "    " + _indented("".join(traceback.format_exception(*self.exc_info)))

    def getMessage(self) -> str:  # noqa: N802 - logging's name
        """Return the message; it has several lines only where our own words do."""
        text = super().getMessage()
        return _indented(text) if "\n" in str(self.msg) else one_line(text)


def _indented(text: str) -> str:
    return "\n    ".join(map(replace_control_chars, text.splitlines()))


def configure_logging(level: int | str = logging.INFO, form: str = FORMAT) -> None:
    """Log to stderr, whoever is at work: these records count for all handlers and formats of the process."""
    use_safe_records()
    logging.basicConfig(level=level, format=form, stream=sys.stderr)


def use_safe_records() -> None:
    """Make all records of this process safe to show; handlers are somebody else's."""
    logging.setLogRecordFactory(_Record)
