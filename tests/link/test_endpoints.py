"""Where a kernel listens, and what of it is no secret."""

from typing import Any

import pytest
import zmq

from kbridge.link.endpoints import Endpoints
from kbridge.wire.message import Channel

PORTS = {f"{channel}_port": 1000 + i for i, channel in enumerate(Channel)}
PUBLIC, SECRET = b"p" * 40, b"s" * 40


def read(**info: Any) -> Endpoints:
    return Endpoints.from_connection_info({**PORTS, **info})


@pytest.mark.parametrize("as_text", [True, False])
def test_the_key_pair_of_a_kernel_that_encrypts_is_read(as_text) -> None:
    """Connection files have text, a kernel's manager has bytes."""
    pair: Any = (PUBLIC.decode(), SECRET.decode()) if as_text else (PUBLIC, SECRET)
    endpoints = read(curve_publickey=pair[0], curve_secretkey=pair[1])
    assert endpoints.curve == (PUBLIC, SECRET)


@pytest.mark.parametrize(
    "info",
    [
        {},
        {"curve_publickey": None, "curve_secretkey": None},
        {"curve_publickey": "", "curve_secretkey": ""},
        {"curve_publickey": PUBLIC},
        {"curve_secretkey": SECRET},
    ],
)
def test_without_a_whole_pair_nothing_is_encrypted(info) -> None:
    assert read(**info).curve is None


def test_no_secret_is_in_the_repr() -> None:
    endpoints = read(key="signing-secret", curve_publickey=PUBLIC, curve_secretkey=SECRET)
    shown = repr(endpoints) + str(endpoints)
    for secret in ("signing-secret", SECRET.decode(), PUBLIC.decode()):
        assert secret not in shown
    assert "1000" in shown, "the rest is for the log"


def test_what_zmq_makes_is_a_pair() -> None:
    public, secret = zmq.curve_keypair()
    endpoints = read(curve_publickey=public.decode(), curve_secretkey=secret.decode())
    assert endpoints.curve is not None
    assert zmq.curve_public(endpoints.curve[1]) == endpoints.curve[0]


@pytest.mark.parametrize("key", ["secret", b"secret", bytearray(b"secret")])
def test_the_signing_key_is_bytes_however_it_came(key) -> None:
    assert read(key=key).key == b"secret"


def test_what_is_left_out_has_the_values_of_a_local_kernel() -> None:
    endpoints = read(transport=None, ip="", signature_scheme="")
    assert endpoints == read()
    assert endpoints.url(Channel.SHELL) == "tcp://127.0.0.1:1000"
    assert endpoints.signature_scheme == "hmac-sha256"
    assert endpoints.key == b""


@pytest.mark.parametrize("channel", list(Channel))
@pytest.mark.parametrize("value", [0, None, "left out"])
def test_a_port_that_is_missing_is_named(channel, value) -> None:
    info = {**PORTS, f"{channel}_port": value}
    if value == "left out":
        del info[f"{channel}_port"]
    with pytest.raises(ValueError, match=f"{channel}_port"):
        Endpoints.from_connection_info(info)
