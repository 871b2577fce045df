"""The choice of the link by the setting and by the kernel."""

import dataclasses
import subprocess
import sys

import pytest
import zmq

from kbridge.errors import KernelError
from kbridge.link.choice import LinkKind, make_link
from kbridge.link.endpoints import Endpoints
from kbridge.link.pyzmq.link import PyzmqLink
from kbridge.link.zmtp import address
from kbridge.link.zmtp.link import ZmtpLink
from kbridge.wire.message import Channel
from tests.link.kernel_side import Recorder, Side


@pytest.fixture
async def side():
    made = Side()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("kind", "encrypted", "expected"),
    [
        ("auto", False, ZmtpLink),
        ("auto", True, PyzmqLink),
        ("zmtp", False, ZmtpLink),
        ("pyzmq", False, PyzmqLink),
        ("pyzmq", True, PyzmqLink),
    ],
)
async def test_the_setting_and_encryption_decide(side, kind, encrypted, expected) -> None:
    curve = zmq.curve_keypair() if encrypted else None
    endpoints = dataclasses.replace(side.endpoints, curve=curve)
    link = make_link(LinkKind(kind))(endpoints, Recorder(), b"name")
    try:
        assert isinstance(link, expected)
    finally:
        link.close()


async def test_plain_sockets_refuse_to_connect_to_a_kernel_that_encrypts(side) -> None:
    endpoints = dataclasses.replace(side.endpoints, curve=zmq.curve_keypair())
    with pytest.raises(KernelError, match="cannot encrypt"):
        make_link(LinkKind.ZMTP)(endpoints, Recorder(), b"name")


async def test_other_transports_than_tcp_and_ipc_are_left_to_libzmq() -> None:
    endpoints = Endpoints("bogus", "127.0.0.1", dict.fromkeys(Channel, 1))
    with pytest.raises(KernelError, match="Protocol not supported"):
        make_link(LinkKind.AUTO)(endpoints, Recorder(), b"name")


async def test_a_system_without_plain_sockets_uses_libzmq(side, monkeypatch) -> None:
    monkeypatch.setattr(address, "_POSIX", False)  # as on Windows
    link = make_link(LinkKind.AUTO)(side.endpoints, Recorder(), b"name")
    link.close()
    assert isinstance(link, PyzmqLink)
    with pytest.raises(KernelError, match="set link to auto"):
        make_link(LinkKind.ZMTP)(side.endpoints, Recorder(), b"name")


def test_a_kernel_on_plain_sockets_needs_no_libzmq() -> None:
    program = """
import asyncio, sys
from types import SimpleNamespace
from kbridge.hub.hub import Hub
from kbridge.link.choice import LinkKind, make_link
from kbridge.link.endpoints import Endpoints
from kbridge.wire.message import Channel

async def main():
    endpoints = Endpoints("tcp", "127.0.0.1", dict.fromkeys(Channel, 1))
    make_link(LinkKind.AUTO)(endpoints, SimpleNamespace(), b"name").close()

asyncio.run(main())
print("zmq" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
