"""`ConnectionFileMixin`, with real sockets, clients and kernels."""

import asyncio
import inspect
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from jupyter_client import connect as peer
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.session import Session
from traitlets import TraitError
from traitlets.config import Config, LoggingConfigurable

import kbridge.connect
from kbridge.connect import (
    ConnectionFileMethods,
    ConnectionFileMixin,
    channel_socket_types,
    port_names,
    write_connection_file,
)
from kbridge.connect.ports import pick_ports
from tests.support.require import require
from tests.support.waiting import TIMEOUT

INFO: dict[str, Any] = {
    "transport": "tcp",
    "ip": "127.0.0.1",
    "shell_port": 1001,
    "iopub_port": 1002,
    "stdin_port": 1003,
    "hb_port": 1004,
    "control_port": 1005,
    "key": b"a key",
    "signature_scheme": "hmac-sha256",
}
PEER_ENCRYPTS = hasattr(peer.ConnectionFileMixin, "curve_publickey")
CURVE = {"curve_publickey": "A" * 40, "curve_secretkey": "B" * 40}
METHODS = [
    "get_connection_info",
    "blocking_client",
    "cleanup_connection_file",
    "cleanup_ipc_files",
    "_record_random_port_names",
    "cleanup_random_ports",
    "write_connection_file",
    "load_connection_file",
    "load_connection_info",
    "_reconcile_connection_info",
    "_equal_connections",
    "_make_url",
    "_create_connected_socket",
    "connect_iopub",
    "connect_shell",
    "connect_stdin",
    "connect_hb",
    "connect_control",
    "_data_dir_default",
    "_ip_default",
    "_ip_changed",
    "_session_default",
]


def has_ipv6() -> bool:
    try:
        pick_ports("::1", 1)
    except OSError:
        return False
    return True


LOOPBACKS = ["127.0.0.1", *(["::1"] if has_ipv6() else [])]


class Kernel(ConnectionFileMixin):
    """A class that uses connection files."""


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory with a short name, for the paths of unix sockets."""
    with tempfile.TemporaryDirectory(prefix="kb-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def kernel(home: Path) -> Kernel:
    return Kernel(connection_file=str(home / "kernel-1.json"))


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    context: zmq.Context[Any] = zmq.Context()
    yield context
    context.destroy(linger=0)


def received(socket: zmq.Socket[bytes], timeout: float = TIMEOUT) -> list[bytes]:
    assert socket.poll(int(timeout * 1000)), "nothing came"
    return socket.recv_multipart()


# -- the contract -------------------------------------------------------------------------------


def test_all_names_of_the_two_peers_exist() -> None:
    from ipykernel import connect as in_kernel

    for name in {*peer.__all__, *in_kernel.__all__, "ConnectionFileMixin", "port_names"}:
        assert name in kbridge.connect.__all__
        assert getattr(kbridge.connect, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        kbridge.connect.nonsense  # noqa: B018
    assert port_names == peer.port_names
    assert channel_socket_types == peer.channel_socket_types


def test_the_import_is_cheap() -> None:
    code = (
        "import sys, jupyter_client.session, traitlets.config; before = set(sys.modules);"
        "import kbridge.connect; print(*(m for m in set(sys.modules) - before"
        " if not m.startswith('kbridge')))"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    assert set(done.stdout.decode().split()) <= {"secrets", "hmac", "base64"}


@pytest.mark.parametrize("name", METHODS)
def test_the_signatures_of_the_methods_are_those_of_jupyter_client(name: str) -> None:
    def parameters(cls: type) -> list[tuple[str, Any]]:
        found = inspect.getattr_static(cls, name)
        function = getattr(found, "__func__", None) or getattr(found, "func", None) or found
        return [(p.name, p.default) for p in inspect.signature(function).parameters.values()]

    assert parameters(ConnectionFileMixin) == parameters(peer.ConnectionFileMixin)


@pytest.mark.skipif(not PEER_ENCRYPTS, reason="jupyter_client before 8.10 has no CurveZMQ")
def test_the_traits_are_those_of_jupyter_client() -> None:
    assert issubclass(ConnectionFileMixin, LoggingConfigurable)
    ours, theirs = ConnectionFileMixin(), peer.ConnectionFileMixin()
    assert ours.trait_names() == theirs.trait_names()
    for name, trait in theirs.traits().items():
        mine = ours.traits()[name]
        assert type(mine) is type(trait), name
        assert mine.metadata.get("config") == trait.metadata.get("config"), name
        if name not in {"context", "session", "log"}:
            assert getattr(ours, name) == getattr(theirs, name), name
    assert isinstance(ours.session, Session)
    assert isinstance(ours.context, zmq.Context)
    assert ours.ports == theirs.ports == [0] * 5


def test_the_configuration_is_that_of_jupyter_client() -> None:
    config = Config({"Kernel": {"ip": "*", "shell_port": 7, "transport": "TCP"}})
    kernel = Kernel(config=config)
    assert (kernel.ip, kernel.shell_port, kernel.transport) == ("0.0.0.0", 7, "tcp")
    with pytest.raises(TraitError):
        kernel.transport = "udp"


# -- what is known ------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, CURVE], ids=["plain", "curve"])
def test_connection_info_that_was_loaded_is_returned(kernel: Kernel, more: dict[str, str]) -> None:
    kernel.load_connection_info(INFO | more)
    assert kernel.get_connection_info() == INFO | more
    assert kernel.ports == [1001, 1003, 1002, 1004, 1005]


def test_a_session_replaces_the_key(kernel: Kernel) -> None:
    kernel.load_connection_info(INFO)
    info = kernel.get_connection_info(session=True)
    assert info["session"] is not kernel.session
    assert info["session"].key == b"a key"
    assert not {"key", "signature_scheme"} & info.keys()


def test_ports_that_are_set_do_not_change(kernel: Kernel) -> None:
    kernel.shell_port = 9
    kernel.load_connection_info(INFO)
    assert kernel.shell_port == 9
    assert kernel.iopub_port == 1002


def test_half_a_key_pair_is_ignored(kernel: Kernel) -> None:
    kernel.load_connection_info(INFO | {"curve_publickey": "A" * 40})
    assert kernel.curve_publickey is None


def test_info_without_an_address_means_this_machine(kernel: Kernel) -> None:
    kernel.ip = "10.1.1.1"
    kernel.load_connection_info({"shell_port": 1})
    assert kernel.ip == peer.localhost()
    kernel.load_connection_info({"transport": "ipc"})
    assert kernel.ip == kernel.connection_file.removesuffix(".json") + "-ipc"


def test_a_blocking_client_has_the_connection_info(kernel: Kernel) -> None:
    kernel.load_connection_info(INFO)
    client = kernel.blocking_client()
    assert isinstance(client, BlockingKernelClient)
    assert client.get_connection_info() == INFO
    assert client.parent is kernel


# -- files --------------------------------------------------------------------------------------


def test_a_file_is_written_once_and_read_by_another(kernel: Kernel) -> None:
    kernel.kernel_name = "python3"
    kernel.write_connection_file(jupyter_session="a.ipynb")
    content = json.loads(Path(kernel.connection_file).read_text())
    assert content["kernel_name"] == "python3"
    assert content["jupyter_session"] == "a.ipynb"
    assert content["shell_port"] == kernel.shell_port > 0
    kernel.write_connection_file(jupyter_session="b.ipynb")
    assert json.loads(Path(kernel.connection_file).read_text()) == content

    other = Kernel()
    other.load_connection_file(kernel.connection_file)
    assert other.get_connection_info() == kernel.get_connection_info()
    again = Kernel(connection_file=kernel.connection_file)
    again.load_connection_file()
    assert again.ports == kernel.ports


def test_a_file_that_vanished_is_written_again(kernel: Kernel) -> None:
    kernel.write_connection_file()
    Path(kernel.connection_file).unlink()
    kernel.write_connection_file()
    assert Path(kernel.connection_file).exists()


def test_only_the_writer_of_a_file_removes_it(kernel: Kernel) -> None:
    kernel.write_connection_file()
    reader = Kernel(connection_file=kernel.connection_file)
    reader.load_connection_file()
    reader.cleanup_connection_file()
    assert Path(kernel.connection_file).exists()
    kernel.cleanup_connection_file()
    assert not Path(kernel.connection_file).exists()
    kernel._connection_file_written = True
    kernel.cleanup_connection_file()  # the file was removed in the meantime


def test_an_invalid_file_is_named_and_not_shown(
    kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    Path(kernel.connection_file).write_text('{"key": "the-key"')
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(ValueError, match=r"kernel-1\.json") as caught,
    ):
        kernel.load_connection_file()
    assert "the-key" not in f"{caught.value!r} {caplog.text}"
    with pytest.raises(FileNotFoundError):
        kernel.load_connection_file("/nowhere/k.json")


@pytest.mark.parametrize("chosen", [{}, {"shell_port": 50321}])
def test_random_ports_are_reset_and_configured_ones_kept(
    kernel: Kernel, chosen: dict[str, int]
) -> None:
    kernel.set_trait("shell_port", chosen.get("shell_port", 0))
    kernel.write_connection_file()
    assert kernel._random_port_names == [n for n in port_names if n not in chosen]
    kernel.cleanup_random_ports()
    assert kernel.shell_port == chosen.get("shell_port", 0)
    assert kernel.hb_port == 0
    assert not Path(kernel.connection_file).exists()
    kernel.write_connection_file()
    assert 0 not in kernel.ports


def test_without_random_ports_the_file_stays(kernel: Kernel) -> None:
    kernel.load_connection_info(INFO)
    kernel._random_port_names = []
    kernel.write_connection_file()
    kernel.cleanup_random_ports()
    assert Path(kernel.connection_file).exists()
    assert kernel.shell_port == 1001


# -- what a provisioner says --------------------------------------------------------------------


def test_a_file_with_the_same_content_is_not_written_again(kernel: Kernel) -> None:
    kernel.load_connection_info(INFO | CURVE)
    kernel.write_connection_file()
    before = Path(kernel.connection_file).stat().st_ino
    kernel._reconcile_connection_info(INFO | CURVE | {"key": "a key"})
    assert Path(kernel.connection_file).stat().st_ino == before


@pytest.mark.parametrize("content", [None, "", "{}", '{"key": 1', "[]"])
def test_a_file_with_other_content_is_replaced(kernel: Kernel, content: str | None) -> None:
    kernel.load_connection_info(INFO | CURVE | {"shell_port": 9, "key": b"old"})
    if content is None:
        kernel.write_connection_file()
    else:
        Path(kernel.connection_file).write_text(content)
    kernel._reconcile_connection_info(INFO)
    assert kernel.get_connection_info() == INFO
    other = Kernel()
    other.load_connection_file(kernel.connection_file)
    assert other.get_connection_info() == INFO
    assert kernel._connection_file_written


def test_members_that_differ_are_named_without_keys(kernel: Kernel) -> None:
    class Stubborn(Kernel):
        def load_connection_info(self, info: Any) -> None:
            super().load_connection_info(info | {"key": "my own", "ip": "127.0.0.1"})

    stubborn = Stubborn(connection_file=kernel.connection_file)
    with pytest.raises(ValueError, match=r"in: key, ip$") as caught:
        stubborn._reconcile_connection_info(INFO | {"ip": "10.1.1.1"})
    assert "a key" not in str(caught.value)
    assert "my own" not in str(caught.value)


@pytest.mark.parametrize("name", [*INFO, *CURVE])
def test_connections_that_differ_in_anything_are_not_equal(name: str) -> None:
    one = INFO | CURVE
    assert Kernel._equal_connections(one, one | {"kernel_name": "other"})
    assert not Kernel._equal_connections(one, one | {name: "other"})
    assert not Kernel._equal_connections(one, {k: v for k, v in one.items() if k != name})


# -- ipc ----------------------------------------------------------------------------------------


def test_ipc_paths_are_absolute(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    assert Kernel(transport="ipc").ip == str(home / "kernel-ipc")
    kernel = Kernel(transport="ipc", connection_file="kernel-2.json")
    assert kernel.ip == str(home / "kernel-2-ipc")
    told = Kernel(transport="ipc", ip="told", connection_file="kernel-3.json")
    told.write_connection_file()
    assert json.loads((home / "kernel-3.json").read_text())["ip"] == str(home / "told")
    assert told._make_url("shell") == f"ipc://{home}/told-1"


def test_a_provisioner_may_return_a_relative_path(
    kernel: Kernel, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    kernel._reconcile_connection_info(INFO | {"transport": "ipc", "ip": "there"})
    assert kernel.ip == str(home / "there")


def test_the_error_of_a_long_path_names_the_settings(kernel: Kernel) -> None:
    kernel.load_connection_info(INFO | {"transport": "ipc", "ip": "/a" * 60})
    with pytest.raises(ValueError, match="JUPYTER_RUNTIME_DIR"):
        kernel.connect_shell()
    with pytest.raises(ValueError, match="JUPYTER_RUNTIME_DIR"):
        kernel.write_connection_file()
    assert not Path(kernel.connection_file).exists()


def test_ipc_files_are_removed_by_the_writer_of_the_connection_file(
    home: Path, context: zmq.Context[Any]
) -> None:
    kernel = Kernel(transport="ipc", connection_file=str(home / "kernel-1.json"))
    kernel.write_connection_file()
    listening = [context.socket(zmq.ROUTER) for _ in channel_socket_types]
    for sock, name in zip(listening, channel_socket_types, strict=True):
        sock.bind(kernel._make_url(name))
    (home / "kernel-1-ipc-9").write_text("of somebody else")

    visitor = Kernel()
    visitor.load_connection_file(kernel.connection_file)
    visitor.cleanup_ipc_files()
    assert len(list(home.glob("kernel-1-ipc-*"))) == 6, "the kernel runs"
    kernel.cleanup_ipc_files()
    assert [path.name for path in home.glob("kernel-1-ipc-*")] == ["kernel-1-ipc-9"]
    kernel.cleanup_ipc_files()
    for sock in listening:
        sock.close(linger=0)


def test_ipc_files_of_a_dead_kernel_are_removed_by_others(home: Path) -> None:
    _, info = write_connection_file(str(home / "k.json"), transport="ipc")
    (home / "k-ipc-1").write_text("")
    visitor = Kernel()
    visitor.load_connection_info(info)
    visitor.cleanup_ipc_files()
    assert not (home / "k-ipc-1").exists()


def test_over_tcp_there_are_no_ipc_files(kernel: Kernel, home: Path) -> None:
    (home / "x-1001").write_text("")
    kernel.load_connection_info(INFO)
    kernel.ip = str(home / "x")
    kernel.cleanup_ipc_files()
    assert (home / "x-1001").exists()


def test_a_start_with_ipc_sweeps_the_directory(home: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(home / "old-ipc-1"))
    os.utime(home / "old-ipc-1", (0, 0))
    Kernel(transport="ipc", connection_file=str(home / "new.json")).write_connection_file()
    assert [path.name for path in home.iterdir()] == ["new.json"]


# -- sockets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ip", "url"),
    [
        ("127.0.0.1", "tcp://127.0.0.1:1001"),
        ("host.example", "tcp://host.example:1001"),
        ("::1", "tcp://[::1]:1001"),
        ("[::1]", "tcp://[::1]:1001"),
        ("fe80::1%lo", "tcp://[fe80::1%lo]:1001"),
    ],
)
def test_addresses_as_zeromq_spells_them(kernel: Kernel, ip: str, url: str) -> None:
    kernel.load_connection_info(INFO | {"ip": ip})
    assert kernel._make_url("shell") == url


class Stub:
    """The sockets of a kernel, on one address."""

    def __init__(self, context: zmq.Context[Any], info: dict[str, Any], home: Path) -> None:
        self.kernel = Kernel(connection_file=str(home / "kernel-s.json"), context=context)
        for name, value in info.items():
            setattr(self.kernel, name, value)
        self.kernel.write_connection_file()
        self.sockets: dict[str, zmq.Socket[bytes]] = {}
        for channel in channel_socket_types:
            sock = context.socket({"hb": zmq.REP, "iopub": zmq.XPUB}.get(channel, zmq.ROUTER))
            sock.ipv6 = True
            if self.kernel.curve_secretkey:
                sock.curve_server = True
                sock.curve_secretkey = self.kernel.curve_secretkey
            sock.bind(self.kernel._make_url(channel))
            self.sockets[channel] = sock

    def close(self) -> None:
        for sock in self.sockets.values():
            sock.close(linger=0)

    def talk(self, client: ConnectionFileMethods) -> None:
        """Check that a client can send and receive on each channel."""
        for channel in ("shell", "stdin", "control"):
            with getattr(client, f"connect_{channel}")(identity=b"me") as socket:
                assert socket.linger == 1000
                socket.send(b"hello")
                assert received(self.sockets[channel]) == [b"me", b"hello"]
                self.sockets[channel].send_multipart([b"me", b"and you"])
                assert received(socket) == [b"and you"]
        with client.connect_hb() as heart:
            heart.send(b"ping")
            self.sockets["hb"].send_multipart(received(self.sockets["hb"]))
            assert received(heart) == [b"ping"]
        with client.connect_iopub() as iopub:
            assert received(self.sockets["iopub"]) == [b"\x01"]
            self.sockets["iopub"].send(b"news")
            assert received(iopub) == [b"news"]


@pytest.fixture
def new_stub(context: zmq.Context[Any], home: Path) -> Iterator[Callable[..., Stub]]:
    made: list[Stub] = []

    def new(**traits: Any) -> Stub:
        made.append(Stub(context, traits, home))
        return made[-1]

    yield new
    for stub in made:
        stub.close()


@pytest.fixture(params=[False, True], ids=["plain", "curve"])
def curve(request: pytest.FixtureRequest) -> dict[str, bytes]:
    return request.getfixturevalue("encrypted") if request.param else {}


@pytest.fixture
def encrypted() -> dict[str, bytes]:
    public, secret = zmq.curve_keypair()  # pyzmq's wheels have it everywhere
    return {"curve_publickey": public, "curve_secretkey": secret}


@pytest.mark.parametrize("ip", [*LOOPBACKS, "ipc"])
def test_a_client_talks_on_every_channel(
    context: zmq.Context[Any], new_stub: Callable[..., Stub], ip: str, curve: dict[str, bytes]
) -> None:
    stub = new_stub(**({"transport": "ipc"} if ip == "ipc" else {"ip": ip}), **curve)
    client = Kernel(context=context)
    client.load_connection_file(stub.kernel.connection_file)
    assert client.get_connection_info() == stub.kernel.get_connection_info()
    stub.talk(client)


@pytest.mark.parametrize("ip", LOOPBACKS)
def test_a_blocking_client_talks(
    new_stub: Callable[..., Stub], ip: str, curve: dict[str, bytes]
) -> None:
    if curve and not PEER_ENCRYPTS:
        pytest.skip("the clients of jupyter_client before 8.10 do not encrypt")
    stub = new_stub(ip=ip, **curve)
    client = stub.kernel.blocking_client()
    client.start_channels(iopub=False, stdin=False, control=False)
    try:
        msg_id = client.kernel_info()
        *_, content = received(stub.sockets["shell"])
        assert content == b"{}"
        assert msg_id
        ping = received(stub.sockets["hb"])
        stub.sockets["hb"].send_multipart(ping)
    finally:
        client.stop_channels()
        client.context.destroy(linger=0)


def test_a_client_without_encryption_gets_no_answer(
    context: zmq.Context[Any], new_stub: Callable[..., Stub], encrypted: dict[str, bytes]
) -> None:
    stub = new_stub(**encrypted)
    plain = Kernel(context=context)
    info = dict(stub.kernel.get_connection_info())
    plain.load_connection_info({k: v for k, v in info.items() if k not in CURVE})
    listening = stub.sockets["shell"]
    failures = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    with listening.get_monitor_socket(failures) as monitor, plain.connect_shell() as sock:
        sock.send(b"in the clear")
        assert received(monitor)
        sock.linger = 0
        listening.disable_monitor()
    assert not listening.poll(0)


def test_the_kernels_public_key_is_enough_for_a_client(
    context: zmq.Context[Any], new_stub: Callable[..., Stub], encrypted: dict[str, bytes]
) -> None:
    stub = new_stub(**encrypted)
    client = Kernel(context=context)
    client.load_connection_info(dict(stub.kernel.get_connection_info()))
    client.curve_secretkey = None
    stub.talk(client)


def test_a_socket_that_cannot_be_connected_is_closed(context: zmq.Context[Any]) -> None:
    kernel = Kernel(context=context)
    kernel.load_connection_info(INFO | {"curve_publickey": "short", "curve_secretkey": "short"})
    with pytest.raises(zmq.ZMQError):
        kernel.connect_shell()
    context.term()  # would block if a socket were still open


# -- under a kernel manager ---------------------------------------------------------------------


class Manager(ConnectionFileMethods, AsyncKernelManager):
    """jupyter_client's manager, with our files and sockets."""


def test_a_manager_keeps_its_traits_and_gets_our_defaults(home: Path) -> None:
    manager = Manager(transport="ipc", connection_file=str(home / "k.json"))
    assert manager.kernel_name == "python3"
    assert manager.ip == str(home / "k-ipc")
    manager.context.term()
    assert Manager.write_connection_file is ConnectionFileMethods.write_connection_file


@pytest.mark.kernel
@pytest.mark.parametrize("how", ["tcp", "ipc", "encrypted"])
def test_a_real_kernel_starts_answers_and_leaves_nothing(home: Path, how: str) -> None:
    require("ipykernel")
    if how == "encrypted" and not PEER_ENCRYPTS:
        pytest.skip("jupyter_client before 8.10 has no CurveZMQ")

    async def live() -> None:
        manager = Manager(connection_file=str(home / "k.json"))
        manager.transport = "ipc" if how == "ipc" else "tcp"
        if how == "encrypted":
            manager.transport_encryption = "required"
        await manager.start_kernel()
        assert ("curve_publickey" in manager.get_connection_info()) is (how == "encrypted")
        client = manager.client()
        try:
            client.start_channels()
            await client.wait_for_ready(timeout=TIMEOUT)
            reply = await client.execute("1 + 1", reply=True, timeout=TIMEOUT)
            assert reply["content"]["status"] == "ok"
        finally:
            client.stop_channels()
            client.context.destroy(linger=0)
            await manager.shutdown_kernel(now=True)

    asyncio.run(live())
    assert not list(home.iterdir())
