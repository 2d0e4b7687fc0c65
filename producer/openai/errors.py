"""The error of a request that cannot be answered as it stands."""

from common.errors import RecordError


def bad_request(what: str) -> RecordError:
    """Return the error `bad_request`; `what` says what was found and what was expected."""
    return RecordError("bad_request", what)
