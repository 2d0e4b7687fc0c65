"""The Celery app of `producer control`: which brokers and result backends it takes, and how long it keeps results."""

import pytest

from common.errors import UsageError
from common.settings import Settings
from producer.control.app import make_control_app


def test_a_result_backend_with_tls_checks_certificates_as_the_broker_does() -> None:
    settings = Settings(broker_url="redis://h/0", control_result_backend="rediss://other/1", result_ttl=90_000.0)
    app = make_control_app(settings, 1)
    assert app.conf.result_backend == "rediss://other/1?ssl_cert_reqs=required"
    assert app.backend.expires == 90_000  # as long as the jobs: not a day, as by default


@pytest.mark.parametrize(
    ("broker", "backend", "message"),
    [
        ("nope://h", "", "HUGQUEUE_CONTROL_BROKER_URL: nope://h is not the URL of a broker of Celery"),
        ("redis://h:x", "", "HUGQUEUE_CONTROL_BROKER_URL: redis://h:x is not a Redis URL"),
        ("", "redis://:secret@h/x", "HUGQUEUE_CONTROL_RESULT_BACKEND: redis://:***@h/x is not a Redis URL"),
        ("", "nope://h", "HUGQUEUE_CONTROL_RESULT_BACKEND: nope://h cannot be used: No module named 'nope'."),
        ("", "file:///nowhere", "file:///nowhere cannot be used: The configured path for the file-system backend"),
    ],
)
def test_a_wrong_url_is_refused_with_the_name_of_its_setting(broker: str, backend: str, message: str) -> None:
    settings = Settings(broker_url="redis://h/0", control_broker_url=broker, control_result_backend=backend)
    with pytest.raises(UsageError) as caught:
        make_control_app(settings, 1)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
