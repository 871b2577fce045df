"""The parser of connection files and of the dicts that kernel managers give."""

from __future__ import annotations

import json
from typing import Any

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from kbridge.errors import InvalidConnectionInfo
from kbridge.wire.connection_info import FILE_LIMIT, ConnectionInfo, parse_connection_file
from kbridge.wire.message import Channel

PORTS = {f"{channel}_port": 1000 + i for i, channel in enumerate(Channel)}
HUGE = 10**5000  # str() and repr() of it fail
PUBLIC, SECRET = b"p" * 40, b"s" * 40


def parse(**info: Any) -> ConnectionInfo:
    return ConnectionInfo.from_connection_info({**PORTS, **info})


def test_all_members_of_a_connection_file_are_read() -> None:
    info = parse(
        transport="tcp",
        ip="10.0.0.1",
        hb_port=7,
        key="secret",
        signature_scheme="hmac-sha512",
        kernel_name="python3",
        curve_publickey=PUBLIC.decode(),
        curve_secretkey=SECRET.decode(),
        jupyter_session="/home/me/a.ipynb",
    )
    ports = dict(zip(Channel, range(1000, 1004), strict=True))
    assert info == ConnectionInfo(
        "tcp", "10.0.0.1", ports, b"secret", "hmac-sha512", (PUBLIC, SECRET), 7, "python3"
    )


def test_missing_and_empty_members_have_the_values_of_a_local_kernel() -> None:
    info = parse(transport=None, ip="", signature_scheme="", key=None, hb_port=0, kernel_name=None)
    assert info == parse()
    assert info.url(Channel.SHELL) == "tcp://127.0.0.1:1000"
    assert info.signature_scheme == "hmac-sha256"
    assert (info.key, info.heartbeat, info.curve, info.kernel_name) == (b"", None, None, "")


@pytest.mark.parametrize(
    ("transport", "ip", "url"),
    [
        ("tcp", "10.0.0.1", "tcp://10.0.0.1:1001"),
        ("tcp", "node7.cluster", "tcp://node7.cluster:1001"),
        ("tcp", "::1", "tcp://[::1]:1001"),
        ("tcp", "[::1]", "tcp://[::1]:1001"),
        ("ipc", "/run/k", "ipc:///run/k-1001"),
        ("ipc", "@k", "ipc://@k-1001"),
    ],
)
def test_addresses_of_tcp_and_ipc(transport: str, ip: str, url: str) -> None:
    info = parse(transport=transport, ip=ip)
    assert info.url(Channel.IOPUB) == info.address(1001) == url


@pytest.mark.parametrize("channel", list(Channel))
@pytest.mark.parametrize("value", [0, None, "", "left out"])
def test_a_missing_port_is_named_in_the_error(channel: Channel, value: Any) -> None:
    info = {**PORTS, f"{channel}_port": value}
    if value == "left out":
        del info[f"{channel}_port"]
    with pytest.raises(InvalidConnectionInfo, match=f"no {channel}_port"):
        ConnectionInfo.from_connection_info(info)


@pytest.mark.parametrize(
    "value",
    [-1, 65536, HUGE, 1.5, True, "x", "\u0661", [1], {"a": 1}],
    ids=lambda v: type(v).__name__,
)
@pytest.mark.parametrize("name", ["shell_port", "hb_port"])
def test_a_port_that_is_not_a_number_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidConnectionInfo, match=f"{name} .* not a port$"):
        parse(**{name: value})


def test_a_port_may_be_text() -> None:
    assert parse(shell_port="1000") == parse()


@pytest.mark.parametrize("value", [[1], 1.5])
def test_an_ipc_suffix_is_a_number_or_text(value: Any) -> None:
    assert parse(transport="ipc", ip="/k", shell_port="a").url(Channel.SHELL) == "ipc:///k-a"
    with pytest.raises(InvalidConnectionInfo, match="shell_port"):
        parse(transport="ipc", ip="/k", shell_port=value)


@pytest.mark.parametrize("name", ["transport", "ip", "signature_scheme"])
def test_a_member_that_is_not_text_is_named_in_the_error(name: str) -> None:
    with pytest.raises(InvalidConnectionInfo, match=f"{name} .* not text"):
        parse(**{name: [1]})


@pytest.mark.parametrize("scheme", ["sha256", "hmac-", "hmac-shake_128"])
def test_an_unknown_signature_scheme_is_refused(scheme: str) -> None:
    with pytest.raises(InvalidConnectionInfo, match="signature_scheme"):
        parse(signature_scheme=scheme)


@pytest.mark.parametrize("key", ["secret", b"secret", bytearray(b"secret"), memoryview(b"secret")])
def test_a_key_may_be_text_or_bytes(key: Any) -> None:
    assert parse(key=key).key == b"secret"


@pytest.mark.parametrize("key", [5, ["secret"], "secret\ud800"])
def test_an_invalid_key_is_named_and_its_value_not_shown(key: Any) -> None:
    with pytest.raises(InvalidConnectionInfo, match=r"^key in the connection info") as caught:
        parse(key=key)
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("as_text", [True, False])
def test_the_key_pair_of_an_encrypted_connection_is_read(as_text: bool) -> None:
    """Connection files contain text, kernel managers have bytes."""
    pair: Any = (PUBLIC.decode(), SECRET.decode()) if as_text else (PUBLIC, SECRET)
    assert parse(curve_publickey=pair[0], curve_secretkey=pair[1]).curve == (PUBLIC, SECRET)


@pytest.mark.parametrize(
    "half",
    [
        {"curve_publickey": None, "curve_secretkey": None},
        {"curve_publickey": "", "curve_secretkey": ""},
        {"curve_publickey": PUBLIC},
        {"curve_secretkey": SECRET},
    ],
)
def test_an_incomplete_key_pair_means_no_encryption(half: dict[str, Any]) -> None:
    assert parse(**half).curve is None


def test_a_key_pair_made_by_zmq_is_accepted() -> None:
    public, secret = zmq.curve_keypair()
    info = parse(curve_publickey=public.decode(), curve_secretkey=secret.decode())
    assert info.curve is not None
    assert zmq.curve_public(info.curve[1]) == info.curve[0]


def test_the_repr_shows_no_key() -> None:
    info = parse(key="signing-secret", curve_publickey=PUBLIC, curve_secretkey=SECRET)
    shown = repr(info) + str(info)
    for secret in ("signing-secret", SECRET.decode(), PUBLIC.decode()):
        assert secret not in shown
    assert "1000" in shown


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
_NAMES = """
hb_port ip transport key signature_scheme kernel_name curve_publickey curve_secretkey
"""
_MEMBERS = st.sampled_from([*PORTS, *_NAMES.split()])


@given(st.dictionaries(_MEMBERS, _JSON))
def test_any_members_are_parsed_or_refused(members: dict[str, Any]) -> None:
    try:
        info = parse(**members)
    except InvalidConnectionInfo:
        return
    for channel in Channel:
        assert info.url(channel).startswith(f"{info.transport}://")


# -- files --------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(), st.integers()))
def test_a_file_is_parsed_from_text_and_from_bytes(content: dict[str, int]) -> None:
    text = json.dumps(content)
    assert parse_connection_file(text, "k.json") == content
    assert parse_connection_file(text.encode(), "k.json") == content


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"key": "the-key"',
        "[1]",
        "null",
        b"\xff",
        b"\x80 the-key",
        "[" * 100_000,
    ],
)
def test_a_file_without_a_json_object_is_refused_and_its_content_not_shown(content: Any) -> None:
    match = r"^k\.json is not a connection file"
    with pytest.raises(InvalidConnectionInfo, match=match) as caught:
        parse_connection_file(content, "k.json")
    assert "the-key" not in str(caught.value)
    assert caught.value.__context__ is None


def test_a_file_that_is_too_long_is_refused() -> None:
    assert parse_connection_file("{}" + " " * (FILE_LIMIT - 2), "k.json") == {}
    with pytest.raises(InvalidConnectionInfo, match="too long"):
        parse_connection_file("{}" + " " * (FILE_LIMIT - 1), "k.json")
