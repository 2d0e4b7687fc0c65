"""Fast paths that fail are counted, and logged once with their traceback."""

import pytest

from workers.inference.core.fallbacks import count_fallback, fallback_counts


def test_each_fallback_is_counted_and_the_first_logs_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    before = fallback_counts().get("test-path", 0)
    for number in range(3):
        try:
            raise ValueError(f"number {number}")
        except ValueError as error:
            count_fallback("test-path", error)
    assert fallback_counts()["test-path"] == before + 3
    assert caplog.text.count("test-path failed") == 1
    assert "ValueError: number 0" in caplog.text
