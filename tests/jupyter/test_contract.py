"""The class for Jupyter Server fulfils the contract of connections, too."""

import asyncio
import inspect

import pytest
from jupyter_server.serverapp import ServerApp
from jupyter_server.services.kernels.connection.abc import (
    KernelWebsocketConnectionABC as PeerABC,
)
from jupyter_server.services.kernels.connection.base import (
    BaseKernelWebsocketConnection as PeerBase,
)
from jupyter_server.services.kernels.connection.channels import (
    ZMQChannelsWebsocketConnection as PeerConnection,
)
from traitlets.config import Config

import kbridge.jupyter
from kbridge.connection import abc, base, channels
from kbridge.jupyter import ZMQChannelsWebsocketConnection
from tests.connection.test_contract import (
    awaited_otherwise,
    called_otherwise,
    missing,
    names,
    of_another_kind,
    traits_that_differ,
)
from tests.support.waiting import TIMEOUT


@pytest.mark.parametrize(
    "faults", [missing, of_another_kind, called_otherwise, awaited_otherwise, traits_that_differ]
)
def test_the_class_has_the_interface_of_jupyter_servers(faults) -> None:
    assert names(PeerConnection), "nothing is compared"
    assert faults(ZMQChannelsWebsocketConnection, PeerConnection) == []


@pytest.mark.parametrize(
    "parent",
    [
        PeerABC,
        PeerBase,
        abc.KernelWebsocketConnectionABC,
        base.BaseKernelWebsocketConnection,
        channels.ZMQChannelsWebsocketConnection,
    ],
)
def test_instances_pass_the_type_checks_of_both_packages(parent) -> None:
    assert issubclass(ZMQChannelsWebsocketConnection, parent)
    assert isinstance(ZMQChannelsWebsocketConnection(), parent)


def test_kbridges_attributes_take_precedence() -> None:
    for name in names(PeerConnection):
        found = inspect.getattr_static(ZMQChannelsWebsocketConnection, name)
        assert found is not inspect.getattr_static(PeerBase, name, None), name


@pytest.mark.parametrize(
    "given",
    ["kbridge.jupyter.ZMQChannelsWebsocketConnection", ZMQChannelsWebsocketConnection],
    ids=["by name", "itself"],
)
def test_jupyter_servers_setting_accepts_the_class(given) -> None:
    config = Config({"ServerApp": {"kernel_websocket_connection_class": given}})
    chosen = ServerApp(config=config).kernel_websocket_connection_class
    assert chosen is kbridge.jupyter.ZMQChannelsWebsocketConnection


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("ZMQChannelsWebsocketConnection", "limit_rate", False),
        ("ZMQChannelsWebsocketConnection", "iopub_msg_rate_limit", 12.0),
        ("ZMQChannelsWebsocketConnection", "iopub_data_rate_limit", 13.0),
        ("ZMQChannelsWebsocketConnection", "rate_limit_window", 1.5),
        ("ZMQChannelsWebsocketConnection", "kernel_ws_protocol", ""),
        ("BaseKernelWebsocketConnection", "kernel_ws_protocol", ""),
        ("Mine", "rate_limit_window", 1.5),
    ],
)
def test_settings_of_jupyter_servers_class_apply(section, name, value) -> None:
    config = Config({section: {name: value}})
    for cls in (ZMQChannelsWebsocketConnection, PeerConnection):

        class Mine(cls):  # type: ignore[misc, valid-type]
            """A subclass of a user, to which the sections of its base classes apply."""

        if section != "Mine":
            assert getattr(cls(config=config), name) == value
        assert getattr(Mine(config=config), name) == value


async def test_configured_settings_apply_to_the_hub_of_the_kernel(world) -> None:
    world.configure(
        limit_rate=False, iopub_msg_rate_limit=12, iopub_data_rate_limit=13, rate_limit_window=1.5
    )
    world.kernels.allowed_message_types = ["kernel_info_request"]
    world.kernels.allow_tracebacks = False
    world.kernels.kernel_info_timeout = 7.0
    conn, _ = await world.open()
    assert conn.kernel_info_timeout == 7.0
    if not world.peer:
        settings = world.hub.settings
        assert settings.limit_rate is False
        assert settings.iopub_msg_rate_limit == 12
        assert settings.iopub_data_rate_limit == 13
        assert settings.rate_limit_window == 1.5
        assert settings.allowed_message_types == ("kernel_info_request",)
        assert settings.allow_tracebacks is False
        assert settings.kernel_info_timeout == 7.0


async def test_properties_name_the_kernel_and_the_session(world) -> None:
    conn, handler = await world.open(session="a-session")
    assert conn.kernel_manager is world.kernel
    assert conn.multi_kernel_manager is world.kernels
    assert conn.kernel_id == world.kernel.kernel_id
    assert conn.session_id == conn.session.session == "a-session"
    assert conn.session_key == f"{world.kernel.kernel_id}:a-session"
    assert conn.websocket_handler is handler
    # Jupyter Server's handler logs only this about a write.
    assert conn.write_message == handler.write_message
    assert conn.subprotocol == handler.selected_subprotocol


async def test_connect_gives_a_future_that_the_handler_awaits(world) -> None:
    conn, _ = await world.prepare()
    connected = conn.connect()
    assert isinstance(connected, asyncio.Future)
    await asyncio.wait_for(connected, TIMEOUT)
    assert sorted(conn.channels) == ["control", "iopub", "shell", "stdin"]


async def test_channels_have_the_methods_of_streams(world) -> None:
    conn, _ = await world.open()
    for name, channel in conn.channels.items():
        assert channel.channel == name
        assert not channel.closed()
        channel.flush()
    conn.session.key = world.kernel.session.key
    sent = conn.session.send(conn.channels["shell"], "complete_request", {"code": "ü"})
    await world.settle()
    assert [m.msg_id for m in world.asked] == [sent["msg_id"]]
    assert bytes(world.asked[0].content) == conn.session.pack({"code": "ü"})


async def test_kernel_info_is_available_to_callers(world) -> None:
    conn, _ = await world.open()
    info = await asyncio.wait_for(conn.request_kernel_info(), TIMEOUT)
    assert info["implementation"] == "a-twin"
    assert conn._kernel_info_future.result()["implementation"] == "a-twin"
