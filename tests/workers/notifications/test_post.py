"""One request: how long it may take, what it follows, and whom it believes."""

import contextlib
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import free_port
from tests.support.tls_certificates import make_certificates  # by a subprocess: openssl
from tests.support.webhook_receiver import Receiver
from workers.notifications.post import PostFailed, post, retry_after


def send(url: str, *, timeout: float = 20.0, allowed: tuple[str, ...] = ("*",)) -> int:
    return post(url, b'{"a":1}', {"webhook-id": "1"}, allowed=allowed, timeout=timeout).status


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *[("120", 120), (" 0 ", 0), ("9" * 500, 1e9), ("Thu, 01 Jan 1970 00:17:40 GMT", 60)],
        *[("Wed, 01 Jan 1969 00:00:00 GMT", 0), ("Thu, 99 Jan 99999 99:99:99 GMT", 0)],
        *[(None, 0), ("", 0), ("soon", 0), ("-5", 0), ("1.5", 0), ("\u0663", 0), ("Thu", 0)],
    ],
)
def test_a_pause_is_read_as_seconds_or_as_a_date(value: str | None, seconds: float) -> None:
    assert retry_after(value, 1000.0) == seconds


def test_a_request_arrives_and_its_status_is_returned() -> None:
    with Receiver(201, 500) as receiver:
        assert send(receiver.url) == 201
        assert send(receiver.origin) == 500
    first, second = receiver.received
    assert (first.path, second.path, first.body) == ("/jobs?token=swordfish", "/", b'{"a":1}')
    assert first.headers["Host"] == f"127.0.0.1:{receiver.port}" and first.headers["webhook-id"] == "1"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int) -> None:
    with Receiver(status) as receiver:
        assert send(receiver.url) == status
    assert len(receiver.received) == 1


def test_a_receiver_that_is_down_or_silent_or_endless_is_given_up_in_time() -> None:
    with pytest.raises(PostFailed, match="Connection refused"):
        send(f"http://127.0.0.1:{free_port()}/")
    with Receiver() as receiver:
        receiver.go.clear()
        with pytest.raises(PostFailed, match=r"no answer within 0\.3 s"):
            send(receiver.url, timeout=0.3)
        receiver.go.set()
        receiver.trickle = True
        with pytest.raises(PostFailed, match=r"no answer within 0\.5 s"):
            send(receiver.url, timeout=0.5)
        receiver.trickle = False


def test_an_address_that_does_not_accept_leaves_time_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as receiver, contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.2", receiver.port), backlog=0))
        for _ in range(4):  # Linux drops what a full queue of connections has no room for
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        resolve = socket.getaddrinfo

        def two(host: str, *arguments: Any, **more: Any) -> Any:
            hosts = ("127.0.0.2", "127.0.0.1") if host == "hooks.test" else (host,)
            return [found for each in hosts for found in resolve(each, *arguments, **more)]

        monkeypatch.setattr(socket, "getaddrinfo", two)
        assert send(f"http://hooks.test:{receiver.port}/", timeout=4) == 204


def test_what_is_no_http_is_told_without_its_words() -> None:
    def greet() -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"220 secret.example SMTP\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(PostFailed) as failed:
            send(f"http://127.0.0.1:{server.getsockname()[1]}/")
        thread.join()
    assert "secret" not in str(failed.value)


def test_a_certificate_is_that_of_the_name_at_the_address_that_was_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_certificates(tmp_path / "tls")
    resolved: list[str] = []
    resolve = socket.getaddrinfo

    def rebind(host: str, *arguments: Any, **more: Any) -> Any:
        """Resolve names of `.test` to the receiver the first time, and to nowhere after that."""
        if not host.endswith(".test"):
            return resolve(host, *arguments, **more)
        resolved.append(host)
        return resolve("127.0.0.1" if resolved.count(host) == 1 else "192.0.2.1", *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", rebind)
    with Receiver(certificate=(str(made.certificate), str(made.key))) as receiver:
        with pytest.raises(PostFailed, match="certificate verify failed"):
            send(receiver.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(made.authority))
        assert send(receiver.url) == 204
        with pytest.raises(PostFailed, match="no public address"):
            send(receiver.url, allowed=(receiver.origin.replace("https", "http"),))
        assert send(f"https://hooks.test:{receiver.port}/x") == 204
        assert receiver.received[-1].headers["Host"] == f"hooks.test:{receiver.port}"
        with pytest.raises(PostFailed, match=r"certificate is not valid for 'other.test'"):
            send(f"https://other.test:{receiver.port}/x")
    assert resolved == ["hooks.test", "other.test"]
