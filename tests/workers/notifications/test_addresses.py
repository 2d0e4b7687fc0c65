"""Where notifications may go: what is checked is the address, however the URL writes it."""

import socket

import pytest

from workers.notifications.addresses import NotAllowed, find_addresses, is_public


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f::1", "64:ff9b::5db8:d70e", "::ffff:93.184.215.14"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.0.192", "192.0.2.1"),
        *("::1", "::", "fe80::1", "fe80::1%1", "fc00::1", "fec0::1", "ff02::1", "ff0e::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:a00:1", "64:ff9b::7f00:1", "2002:a00:1::1", "::127.0.0.1"),
        *("64:ff9b::c000:c0", "64:ff9b:1::7f00:1", "::ffff:0:7f00:1", "fd00:ec2::254", "198.18.0.1"),
    ],
)
def test_all_others_are_not(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "host",
    ["localhost", "127.0.0.1", "127.1", "0x7f000001", "2130706433", "[::1]", "[::ffff:127.0.0.1]", "0", "10.0.0.1"],
)
def test_no_spelling_of_a_private_address_is_allowed(host: str) -> None:
    with pytest.raises(NotAllowed, match="no public address, and the workers' HUGQUEUE_NOTIFY_ALLOWED does not name"):
        find_addresses(f"https://{host}/jobs", [f"http://{host}", f"https://{host}:8443", "https://example.com"])


def test_http_and_private_addresses_are_for_what_is_named() -> None:
    with pytest.raises(NotAllowed, match=r"only https is allowed, and .* does not name http://127.0.0.1:8080"):
        find_addresses("http://127.0.0.1:8080/a", ["http://127.0.0.1", "https://127.0.0.1:8080"])
    assert find_addresses("http://127.0.0.1:8080/a", ["http://127.0.0.1:8080"]) == [("127.0.0.1", 8080)]
    assert find_addresses("http://127.0.0.1/a", ["*"]) == [("127.0.0.1", 80)]


def test_of_several_addresses_only_public_ones_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 443)) for ip in ("10.0.0.1", "93.184.215.14")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert find_addresses("https://two.example/", ()) == [("93.184.215.14", 443)]
