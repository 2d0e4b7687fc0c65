"""Pauses between requests to the Hub: what it asks for counts, but never for nothing."""

from typing import Any

import pytest

from producer.hub import retries
from producer.hub.retries import with_retries


class _Refused(Exception):
    """What an HTTP library raises: an error with the answer."""

    def __init__(self, status: int, **headers: str) -> None:
        super().__init__(str(status))
        self.response: Any = type("Response", (), {"status_code": status, "headers": headers})()


@pytest.mark.parametrize(
    ("headers", "pauses"),
    [
        ({}, [1.0, 2.0, 4.0]),
        ({"Retry-After": "0"}, [1.0, 2.0, 4.0]),
        ({"Retry-After": "30"}, [30.0, 30.0, 30.0]),
        ({"Retry-After": "nan"}, [1.0, 2.0, 4.0]),
        ({"Retry-After": "Sun, 29 Nov 2026 08:00:00 GMT"}, [1.0, 2.0, 4.0]),
    ],
)
def test_pauses_grow_and_are_as_long_as_the_hub_asks(
    headers: dict[str, str], pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", slept.append)
    answers = iter([_Refused(429, **headers)] * 3)

    def request() -> str:
        for refused in answers:
            raise refused
        return "done"

    assert with_retries(request) == "done"
    assert slept == pauses
