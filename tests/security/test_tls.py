"""Redis over TLS: one URL for producer, workers and Flower, and no certificate is taken on trust."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import redis

from common.errors import UsageError
from common.redis.url import check_redis_url, mask_url, tls_options
from tests.support.flower_process import flower, get
from tests.support.processes import RedisServer, Shell, Workers, environment, wait_until
from tests.support.tls_certificates import Certificates, make_certificates, why_not

needs_tls = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


class TlsServer(RedisServer):
    """A redis-server that speaks TLS and nothing else; the bundled one knows none."""

    def __init__(self, directory: Path, certificates: Certificates) -> None:
        super().__init__(directory, binary="redis-server")
        self.authority = certificates.authority
        files = {"cert": certificates.certificate, "key": certificates.key, "ca-cert": certificates.authority}
        words = (word for name, file in files.items() for word in (f"--tls-{name}-file", str(file)))
        self.options = ("--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no", *words)

    @property
    def client(self) -> "redis.Redis":
        return redis.Redis(port=self.port, host="127.0.0.1", ssl=True, ssl_ca_certs=str(self.authority))

    def url_with(self, options: str) -> str:
        return f"rediss://127.0.0.1:{self.port}/0{options}"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls") / "certificates")


@pytest.fixture
def tls_server(tmp_path: Path, certificates: Certificates) -> Iterator[TlsServer]:
    started = TlsServer(tmp_path / "redis", certificates)
    started.start()
    yield started
    started.kill()


@needs_tls
def test_producer_worker_and_flower_work_over_tls(tls_server: TlsServer, certificates: Certificates, tmp_path: Path):
    environ = environment(tmp_path, tls_server.url_with(f"?ssl_ca_certs={certificates.authority}"))
    (tmp_path / "a.txt").write_text("a\nb\n")
    workers = Workers(environ, tmp_path / "workers.log").start()
    try:
        with flower(environ, tmp_path / "flower.log") as url:
            done = Shell(environ, tmp_path).run("submit", "--task", "test-echo", "a.txt", "--wait")
            assert '"output": "B"' in done.stdout
            wait_until(lambda: "cpu-" in get(f"{url}/api/workers?refresh=1"), 30, "Flower asks the worker")
            assert '"name": "any"' in get(f"{url}/api/queues/length")
    finally:
        workers.kill()
    assert "insecure" not in workers.text()


@needs_tls
@pytest.mark.parametrize("command", ["producer", "workers"])
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("?ssl_ca_certs={stranger}", "self-signed certificate in certificate chain"),
        ("", "self-signed certificate in certificate chain"),
    ],
)
def test_an_untrusted_certificate_is_refused_in_one_sentence(
    tls_server: TlsServer, certificates: Certificates, tmp_path: Path, command: str, options: str, reason: str
):
    environ = environment(tmp_path, tls_server.url_with(options.format(stranger=certificates.stranger)))
    if command == "producer":
        said = Shell(environ, tmp_path).run("jobs", status=1).stderr
    else:
        workers = Workers(environ, tmp_path / "workers.log").start()
        assert workers.process and workers.process.wait(30) == 1
        said = workers.text()
    assert len(said.strip().splitlines()) == 1
    assert f"its certificate is not trusted ({reason})" in said
    assert "ssl_ca_certs=" in said


@needs_tls
def test_a_certificate_of_another_name_is_refused(tls_server: TlsServer, certificates: Certificates, tmp_path: Path):
    url = f"rediss://localhost:{tls_server.port}/0?ssl_ca_certs={certificates.authority}"
    assert "not valid for 'localhost'" in Shell(environment(tmp_path, url), tmp_path).run("jobs", status=1).stderr
    lenient = environment(tmp_path, f"{url}&ssl_check_hostname=false")
    Shell(lenient, tmp_path).run("jobs")


BAD = {
    "http://h/0": "not a Redis URL",
    "redis+socket://": "not a Redis URL",
    "redis://h/zero": "not a Redis URL",
    "redis://h:99999/0": "not a Redis URL",
    "redis://h/0?socket_timeout=3": "unknown option 'socket_timeout'",
    "redis://h/0?ssl_ca_certs=/etc/hosts": "unknown option 'ssl_ca_certs'",
    "rediss://h/0?ssl_cert_reqs=CERT_NONE": "must be required or none",
    "rediss://h/0?ssl_ca_certs=/none.pem": "'/none.pem' does not exist",
    "redis://a/0;redis://b/0": "not a Redis URL",
}


@pytest.mark.parametrize(("url", "reason"), BAD.items())
def test_a_url_that_cannot_be_used_is_refused_with_the_reason(url: str, reason: str):
    with pytest.raises(UsageError, match=reason):
        check_redis_url(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:1/0", "redis://h:1/0"),
        ("redis://:secret@h:1/0", "redis://:***@h:1/0"),
        ("redis://me:secret@h:1/0", "redis://me:***@h:1/0"),
        ("redis://me:secret@secret@h", "redis://me:***@h"),
        ("redis://:sec/ret@h", "redis://:***@h"),
        ("redis://:sec#ret?x@h", "redis://:***@h"),
        ("redis://secret@h", "redis://***@h"),
        ("me:secret@h", "***@h"),
    ],
)
def test_a_password_is_masked_however_the_url_is_written(url: str, shown: str):
    assert mask_url(url) == shown


@pytest.mark.parametrize("password", ["sec/ret", "sec#ret", "1?secret", "[secret", "sec;ret"])
def test_a_password_that_is_not_written_as_it_should_be_is_not_repeated(password: str):
    url = f"redis://me:{password}@h:1/0"
    with pytest.raises(UsageError) as raised:
        check_redis_url(url)
    assert password not in str(raised.value)


def test_certificates_are_checked_unless_the_address_says_otherwise(tmp_path: Path):
    file = tmp_path / "a b.pem"
    file.touch()
    url = check_redis_url(f"rediss://:p@h:1/0?ssl_ca_certs={quote(str(file))}&ssl_check_hostname=false")
    wanted = {"ssl_cert_reqs": "required", "ssl_ca_certs": str(file), "ssl_check_hostname": False}
    assert tls_options(url) == wanted
    assert tls_options(check_redis_url("rediss://h")) == {"ssl_cert_reqs": "required"}
    assert tls_options(check_redis_url("rediss://h?ssl_cert_reqs=none")) == {"ssl_cert_reqs": "none"}
    assert tls_options("redis://h/0") is None
