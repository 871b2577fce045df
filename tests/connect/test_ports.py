"""Free ports, and the cache of ports that were given to kernels."""

import errno
import inspect
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from jupyter_client import connect as peer
from traitlets.config import SingletonConfigurable

from kbridge.connect import LocalPortCache, ports
from kbridge.connect.ports import family_of, is_ipv6, pick_ports


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


V6 = ["::1", "::", "[::1]"] if has_ipv6() else []
ADDRESSES = ["", "*", "127.0.0.1", "0.0.0.0", "localhost", *V6]


@pytest.fixture
def cache() -> Iterator[LocalPortCache]:
    LocalPortCache.clear_instance()
    yield LocalPortCache.instance()
    LocalPortCache.clear_instance()


@pytest.mark.parametrize("ip", ADDRESSES)
def test_ports_are_free_and_differ(ip: str) -> None:
    found = pick_ports(ip, 20)
    assert len(set(found)) == 20
    for port in found:
        with socket.socket(family_of(ip)) as probe:
            probe.bind(("" if ip == "*" else ip.strip("[]"), port))
    assert pick_ports(ip, 0) == []


def test_the_family_follows_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    assert family_of("127.0.0.1") == family_of("") == family_of("*") == socket.AF_INET
    assert family_of("::1") == family_of("fe80::1%lo") == socket.AF_INET6
    assert [is_ipv6(ip) for ip in ("::1", "1.2.3.4", "host")] == [True, False, False]

    def resolve(name: str, port: None, type: int) -> list[tuple[int]]:  # noqa: A002
        return {"both": [(socket.AF_INET6,), (socket.AF_INET,)], "new": [(socket.AF_INET6,)]}[name]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert family_of("both") == socket.AF_INET, "as ZeroMQ without the IPv6 option"
    assert family_of("new") == socket.AF_INET6


class Ports:
    """Let sockets get these ports, one after another."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = list(numbers)
        self.held: list[int] = []
        self.most = 0

    def __call__(self, family: int) -> "Ports.Socket":
        return Ports.Socket(self)

    class Socket:
        def __init__(self, ports: "Ports") -> None:
            self.ports = ports
            self.port = 0

        def __enter__(self) -> "Ports.Socket":
            return self

        def __exit__(self, *_: object) -> None:
            self.ports.held.remove(self.port)

        def bind(self, address: tuple[str, int]) -> None:
            self.port = self.ports.numbers.pop(0)
            self.ports.held.append(self.port)
            self.ports.most = max(self.ports.most, len(self.ports.held))

        def getsockname(self) -> tuple[str, int]:
            return "", self.port


def test_ports_are_held_until_all_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Ports(1, 2, 3, 4, 5)
    monkeypatch.setattr(ports.socket, "socket", fake)
    assert pick_ports("127.0.0.1", 3, avoid={1, 3}) == [2, 4, 5]
    assert fake.most == 5
    assert not fake.held


def test_the_search_for_a_port_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports.socket, "socket", Ports(*range(1, 1000)))
    with pytest.raises(OSError, match="not promised to a kernel") as caught:
        pick_ports("127.0.0.1", 1, avoid=range(1000))
    assert caught.value.errno == errno.EADDRINUSE


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(OSError, match=r"No free port on '192\.0\.2\.1'") as caught:
        pick_ports("192.0.2.1", 1)
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_a_name_that_cannot_be_resolved_is_named() -> None:
    with pytest.raises(OSError, match=r"No free port on 'no-such-host\.invalid'"):
        pick_ports("no-such-host.invalid", 1)


# -- the cache ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["find_available_port", "return_port"])
def test_the_signatures_of_the_cache_are_those_of_jupyter_client(name: str) -> None:
    ours, theirs = (
        inspect.signature(getattr(c, name)) for c in (LocalPortCache, peer.LocalPortCache)
    )
    assert list(ours.parameters) == list(theirs.parameters)


def test_there_is_one_cache(cache: LocalPortCache) -> None:
    assert issubclass(LocalPortCache, SingletonConfigurable)
    assert LocalPortCache.instance() is cache
    assert LocalPortCache.initialized()
    assert cache.currently_used_ports == set()


@pytest.mark.parametrize("ip", ADDRESSES)
def test_a_port_is_reserved_until_it_is_returned(cache: LocalPortCache, ip: str) -> None:
    given = {cache.find_available_port(ip) for _ in range(10)}
    assert len(given) == 10
    assert cache.currently_used_ports == given == cache.promised()
    one = given.pop()
    cache.return_port(one)
    cache.return_port(one)  # has no effect
    assert cache.currently_used_ports == given


def test_a_reserved_port_is_not_found_again(
    cache: LocalPortCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports.socket, "socket", Ports(7, 7, 8, 7))
    assert cache.find_available_port("127.0.0.1") == 7
    assert cache.find_available_port("127.0.0.1") == 8
    cache.return_port(7)
    assert cache.find_available_port("127.0.0.1") == 7


def test_threads_do_not_get_the_same_port(cache: LocalPortCache) -> None:
    def several(_: Any) -> list[int]:
        return [cache.find_available_port("127.0.0.1") for _ in range(25)]

    with ThreadPoolExecutor(8) as pool:
        given = [port for some in pool.map(several, range(8)) for port in some]
    assert len(set(given)) == 200
    assert cache.currently_used_ports == set(given)


def test_a_failed_search_reserves_nothing(cache: LocalPortCache) -> None:
    with pytest.raises(OSError, match="No free port"):
        cache.find_available_port("192.0.2.1")
    assert cache.currently_used_ports == set()
