"""Requests to the Hub: which errors pass, how long to wait for that, and what the others mean to a user."""

import logging
import math
import time
from collections.abc import Callable
from typing import Any, TypeVar

from common.errors import HugqueueError, UsageError, first_line

T = TypeVar("T")
logger = logging.getLogger(__name__)

#: Statuses of answers that may change: 409 and 412 say that another commit came first.
_PASSING = (408, 409, 412, 425, 429, 500, 502, 503, 504)
#: Seconds between two attempts at most, and seconds after which an outage is reported.
_MAX_PAUSE, _GIVE_UP = 60.0, 900.0


def with_retries(request: Callable[[], T], first_pause: float = 1.0) -> T:
    """Return what `request` returns, repeated with growing pauses while another attempt may help.

    Args:
        request: calls huggingface_hub, which itself repeats only some of its requests.
        first_pause: seconds before the second attempt. A longer `Retry-After` of the Hub takes precedence.

    Raises:
        Exception: the last one of `request`.
    """
    end, pause = time.monotonic() + _GIVE_UP, first_pause
    while True:
        try:
            return request()
        except HugqueueError:
            raise
        except Exception as error:  # a boundary: the HTTP library changes with the version of huggingface_hub
            if not may_pass(error) or time.monotonic() > end:
                raise
            wait = _retry_after(error)
            logger.info("the Hub: %s; trying again", first_line(error))
        time.sleep(pause if wait is None else max(pause, wait))
        pause = min(2 * pause, _MAX_PAUSE)


def may_pass(error: BaseException) -> bool:
    """Whether another attempt may help: a rate limit, another commit, a fault of the Hub or of the network."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    if (code := status(error)) is not None:
        return code in _PASSING
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # a failed upload of a file
        return may_pass(error.__cause__)
    if isinstance(error, OfflineModeIsEnabled | ValueError | TypeError):
        return False
    network = type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "requests", "urllib3")
    return network or isinstance(error, ConnectionError | TimeoutError | RuntimeError)


def status(error: BaseException) -> int | None:
    """Return the status of the answer that an error reports; None if there was no answer."""
    found = getattr(getattr(error, "response", None), "status_code", None)
    return found if isinstance(found, int) else None


def _retry_after(error: BaseException) -> float | None:
    headers: Any = getattr(getattr(error, "response", None), "headers", None) or {}
    try:
        seconds = float(headers.get("Retry-After"))
    except (TypeError, ValueError):  # none, or a date
        return None
    return min(max(seconds, 0.0), _GIVE_UP) if math.isfinite(seconds) else None


def refusal(name: str, error: Exception) -> HugqueueError:
    """Return the error of a request that failed for good, as one sentence for the user."""
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    code, why = status(error), _reason(error)
    if isinstance(error, OfflineModeIsEnabled):
        told = "the Hub cannot be used, for HF_HUB_OFFLINE is set."
    elif isinstance(error, GatedRepoError):
        told = "it is gated, and this token has no access to it: accept its terms on the Hub first."
    elif isinstance(error, RepositoryNotFoundError):
        told = "the Hub has no such repository, or this token has no access to it."
    elif code == 401:
        told = f"the Hub does not accept this token: {why}. Check HF_TOKEN, or log in again."
    elif code == 403:
        told = f"this token must not write there: {why}. Use a token with write access to it."
    elif isinstance(error, ValueError):  # what the Hub says of a card
        told = f"{why}."
    else:
        return HugqueueError(
            f"{name}: the Hub cannot be reached or fails: {why}. Run the same command again to continue."
        )
    return UsageError(f"{name}: {told}")


def _reason(error: Exception) -> str:
    told = getattr(error, "server_message", None)
    return str(told or first_line(error)).rstrip(".")
