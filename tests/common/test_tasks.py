"""Tasks of other distributions."""

import pytest

from common.errors import UsageError
from common.tasks import find_task
from tests.support.processes import PLUGINS


def test_a_distribution_that_comes_later_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="Unknown task 'test-wait'"):
        find_task("test-wait")
    monkeypatch.syspath_prepend(str(PLUGINS))
    assert find_task("test-wait").params is None
