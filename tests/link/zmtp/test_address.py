import socket

import pytest

from kbridge.errors import KernelError
from kbridge.link.zmtp.address import Address, is_local


@pytest.mark.parametrize(
    ("host", "family", "address"),
    [
        ("127.0.0.1", socket.AF_INET, ("127.0.0.1", 5000)),
        ("::1", socket.AF_INET6, ("::1", 5000, 0, 0)),
        ("[::1]", socket.AF_INET6, ("::1", 5000, 0, 0)),
    ],
)
def test_a_numeric_address_needs_no_resolution(host, family, address) -> None:
    assert Address("tcp", host, 5000).numeric() == [(family, address)]


@pytest.mark.parametrize(
    ("prefix", "address"),
    [("/run/kernel", "/run/kernel-1"), ("@kernel", "\0kernel-1"), ("kernel", "kernel-1")],
)
def test_an_ipc_address_is_a_path_or_an_abstract_name(prefix, address) -> None:
    assert Address("ipc", prefix, 1).numeric() == [(socket.AF_UNIX, address)]


def test_a_name_is_resolved_with_ipv4_first() -> None:
    address = Address("tcp", "localhost", 5000)
    assert address.numeric() is None
    found = address.resolve()
    assert found[0] == (socket.AF_INET, ("127.0.0.1", 5000))


def test_ipv4_goes_before_ipv6(monkeypatch) -> None:
    six = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 5000, 0, 0))
    four = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 5000))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [six, four])
    assert [family for family, _ in Address("tcp", "both.example", 5000).resolve()] == [
        socket.AF_INET,
        socket.AF_INET6,
    ]


def test_a_name_that_is_not_valid_cannot_be_resolved() -> None:
    address = Address("tcp", "a" * 70 + ".example", 5000)
    assert address.numeric() is None
    with pytest.raises(OSError, match="not a host name"):
        address.resolve()


@pytest.mark.parametrize(
    ("transport", "host"),
    [("bogus", "127.0.0.1"), ("tcp", ""), ("tcp", "*"), ("ipc", "/" + 107 * "x"), ("ipc", "a\0b")],
)
def test_an_impossible_address_is_refused(transport, host) -> None:
    with pytest.raises(KernelError, match="cannot connect to the kernel's sockets"):
        Address(transport, host, 1)


@pytest.mark.parametrize(
    ("family", "address", "local"),
    [
        (socket.AF_UNIX, "/run/kernel-1", True),
        (socket.AF_INET, ("127.0.0.1", 1), True),
        (socket.AF_INET, ("192.0.2.1", 1), False),
        (socket.AF_INET6, ("::1", 1, 0, 0), True),
        (socket.AF_INET6, ("2001:db8::1", 1, 0, 0), False),
    ],
)
def test_local_addresses(family, address, local) -> None:
    assert is_local(family, address) is local
