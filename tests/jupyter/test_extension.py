"""The extension in Jupyter Servers that have a user's configuration and do not listen."""

from __future__ import annotations

import asyncio
import functools
import sys
import types
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from jupyter_server.extension.application import ExtensionApp
from jupyter_server.extension.manager import ExtensionPackage
from jupyter_server.gateway.connections import GatewayWebSocketConnection
from jupyter_server.serverapp import ServerApp
from jupyter_server.services.kernels.connection.channels import (
    ZMQChannelsWebsocketConnection as PeerConnection,
)
from jupyter_server.services.kernels.kernelmanager import ServerKernelManager
from jupyter_server.services.kernels.websocket import KernelWebsocketHandler
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine

import kbridge.jupyter
from kbridge import __version__
from kbridge.hub.settings import HubSettings
from kbridge.jupyter import ZMQChannelsWebsocketConnection
from tests.jupyter.apps import Jupyter

SETTING = "kernel_websocket_connection_class"
HERE = "tests.jupyter.test_extension"
PEER = "jupyter_server.services.kernels.connection.channels.ZMQChannelsWebsocketConnection"
OURS = "kbridge.jupyter.ZMQChannelsWebsocketConnection"
IDLE = "idle: kernel_websocket_connection_class is configured, and stays "


class UsersOwn(PeerConnection):
    """A connection class that a user of Jupyter Server may have written."""


class UsersOwnOnOurs(ZMQChannelsWebsocketConnection):
    """A connection class that derives from kbridge's."""


class UsersApp(ExtensionApp):
    """An extension like `jupyter notebook`: loaded after kbridge, with its own config file."""

    name = "usersapp"


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    return [{"module": HERE, "app": UsersApp}]


def chosen(app: ServerApp) -> Any:
    """Return the connection class in use; all places where Jupyter Server reads it must agree."""
    cls = app.web_app.settings[SETTING]
    assert getattr(app, SETTING) is cls
    return cls


def hub_settings(app: ServerApp) -> HubSettings:
    """Return the hub settings that the first websocket of a kernel uses."""
    kernels = app.kernel_manager
    kernel = ServerKernelManager(parent=kernels, shell_port=1, iopub_port=2, stdin_port=3)
    kernel.control_port, kernel.hb_port, kernel.kernel_id = 4, 5, "a-kernel"
    kernels._kernels[kernel.kernel_id] = kernel
    request = HTTPServerRequest(
        start_line=RequestStartLine("GET", "/", "HTTP/1.1"),
        headers=HTTPHeaders({"Host": "127.0.0.1"}),
        connection=SimpleNamespace(set_close_callback=lambda _: None),  # type: ignore[arg-type]
    )
    handler = KernelWebsocketHandler(app.web_app, request)
    connection = chosen(app)(parent=kernel, websocket_handler=handler, config=handler.config)
    settings = connection.hub.settings
    del kernels._kernels[kernel.kernel_id]
    assert isinstance(settings, HubSettings)
    return settings


# -- which class is used --------------------------------------------------------------------


async def test_the_installed_extension_replaces_the_class_and_logs_it(jupyter: Jupyter) -> None:
    app = jupyter.start()
    assert chosen(app) is ZMQChannelsWebsocketConnection
    (said,) = jupyter.ours()
    assert said.startswith(f"kernel websockets go over kbridge {__version__}")
    assert "--KbridgeExtension.enabled=False" in said, "the log must name the option"
    assert not jupyter.complaints()


async def test_without_the_extension_nothing_changes(jupyter: Jupyter) -> None:
    jupyter.switch.unlink()
    assert chosen(jupyter.start()) is PeerConnection
    assert "kbridge" not in jupyter.log


@pytest.mark.parametrize("way", ["command line", "file"])
async def test_one_setting_turns_the_extension_off(jupyter: Jupyter, way: str) -> None:
    if way == "command line":
        app = jupyter.start("--KbridgeExtension.enabled=False")
    else:
        app = jupyter.start(config="c.KbridgeExtension.enabled = False")
    assert chosen(app) is PeerConnection
    assert jupyter.ours() == ["off, by KbridgeExtension.enabled"]
    assert not jupyter.complaints()


@pytest.mark.parametrize("way", ["command line", "file"])
async def test_an_extension_that_is_not_loaded_changes_nothing(jupyter: Jupyter, way: str) -> None:
    if way == "command line":
        app = jupyter.start("--ServerApp.jpserver_extensions=kbridge=False")
    else:
        app = jupyter.start(config="c.ServerApp.jpserver_extensions = {'kbridge': False}")
    assert chosen(app) is PeerConnection
    assert not jupyter.ours()
    assert not jupyter.complaints()


@pytest.mark.parametrize("way", ["command line", "file", "program"])
@pytest.mark.parametrize(
    ("name", "cls"), [(f"{HERE}.UsersOwn", UsersOwn), (PEER, PeerConnection)], ids=["own", "peer's"]
)
async def test_a_class_that_the_user_configured_stays(
    jupyter: Jupyter, way: str, name: str, cls: type
) -> None:
    if way == "command line":
        app = jupyter.start(f"--ServerApp.{SETTING}={name}")
    elif way == "file":
        app = jupyter.start(config=f"c.ServerApp.{SETTING} = {name!r}")
    else:
        app = jupyter.start(**{SETTING: cls})
    assert chosen(app) is cls
    assert jupyter.ours() == [f"{IDLE}{cls.__module__}.{cls.__qualname__}"]
    assert not jupyter.complaints()


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        pytest.param(f"{HERE}.UsersOwn", UsersOwn, id="own"),
        pytest.param(PEER, PeerConnection, id="peer's"),
    ],
)
async def test_a_class_configured_for_an_application_stays(
    jupyter: Jupyter, name: str, cls: type
) -> None:
    file = jupyter.config_file.with_name("jupyter_usersapp_config.py")
    file.write_text(f"c = get_config()\nc.ServerApp.{SETTING} = {name!r}\n")
    app = jupyter.start(f"--ServerApp.jpserver_extensions={HERE}=True")
    assert chosen(app) is cls
    assert jupyter.ours() == [f"{IDLE}{cls.__module__}.{cls.__qualname__}"]


@pytest.mark.parametrize("way", ["command line", "program"])
@pytest.mark.parametrize(
    ("name", "cls"),
    [(OURS, ZMQChannelsWebsocketConnection), (f"{HERE}.UsersOwnOnOurs", UsersOwnOnOurs)],
    ids=["ours", "a subclass"],
)
async def test_subclasses_of_kbridges_class_stay(
    jupyter: Jupyter, way: str, name: str, cls: type
) -> None:
    argv = (f"--ServerApp.{SETTING}={name}",) if way == "command line" else ()
    app = jupyter.start(*argv, **({} if argv else {SETTING: cls}))
    assert chosen(app) is cls
    assert jupyter.ours() == [f"on, by {SETTING}"]
    assert not jupyter.complaints()


class Firewall(PeerConnection):
    """A connection class of another extension that filters messages."""


def another_extension(
    monkeypatch: pytest.MonkeyPatch, name: str, load: Callable[[ServerApp], None]
) -> str:
    """Write a module that is an extension; return the option that loads it."""
    module = types.ModuleType(name)
    module._jupyter_server_extension_points = lambda: [{"module": name}]  # type: ignore[attr-defined]
    module._load_jupyter_server_extension = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)
    return f"--ServerApp.jpserver_extensions={name}=True"


def put_firewall_in_place(app: ServerApp) -> None:
    app.web_app.settings[SETTING] = Firewall


async def test_a_class_that_another_extension_set_stays(
    jupyter: Jupyter, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = jupyter.start(another_extension(monkeypatch, "a_firewall", put_firewall_in_place))
    assert app.web_app.settings[SETTING] is Firewall
    assert getattr(app, SETTING) is PeerConnection
    (said,) = jupyter.ours()
    assert said == f"idle: another extension has set {SETTING}, which stays {HERE}.Firewall"


async def test_a_class_that_a_later_extension_sets_stays_and_is_logged(
    jupyter: Jupyter, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = jupyter.start(another_extension(monkeypatch, "z_firewall", put_firewall_in_place))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert app.web_app.settings[SETTING] is Firewall
    assert jupyter.ours()[-1] == f"off: another extension has installed {HERE}.Firewall instead"


async def test_methods_that_another_extension_has_changed_stay(
    jupyter: Jupyter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(app: ServerApp) -> None:
        method = PeerConnection.handle_incoming_message

        @functools.wraps(method)
        def refusing(self: Any, message: Any) -> None:
            if b"forbidden" not in message:
                method(self, message)

        monkeypatch.setattr(PeerConnection, "handle_incoming_message", refusing)

    app = jupyter.start(another_extension(monkeypatch, "a_firewall", refuse))
    assert chosen(app) is PeerConnection
    assert jupyter.ours() == [f"idle: another extension has changed methods of {PEER}, which stays"]


async def test_with_a_gateway_the_kernels_stay_with_the_gateway(jupyter: Jupyter) -> None:
    app = jupyter.start("--GatewayClient.url=http://127.0.0.1:9")
    assert issubclass(chosen(app), GatewayWebSocketConnection)
    (said,) = jupyter.ours()
    assert said.startswith("idle: kernels are behind a gateway")


async def test_the_class_works_without_the_extension(jupyter: Jupyter) -> None:
    jupyter.switch.unlink()
    app = jupyter.start(
        f"--ServerApp.{SETTING}={OURS}", "--ZMQChannelsWebsocketConnection.history_limit=17"
    )
    assert chosen(app) is ZMQChannelsWebsocketConnection
    assert hub_settings(app).history_limit == 17
    assert not jupyter.ours()
    assert not jupyter.complaints()


async def test_the_class_works_with_the_extension_turned_off(jupyter: Jupyter) -> None:
    app = jupyter.start("--KbridgeExtension.enabled=False", f"--ServerApp.{SETTING}={OURS}")
    assert chosen(app) is ZMQChannelsWebsocketConnection
    assert not jupyter.complaints()


@pytest.mark.parametrize("name", ["kbridge", "kbridge.jupyter"])
async def test_the_extension_is_enabled_by_either_name(jupyter: Jupyter, name: str) -> None:
    jupyter.switch.unlink()
    package = ExtensionPackage(name=name, enabled=True)
    assert package.validate()
    assert [p.module for p in package.extension_points.values()] == [kbridge.jupyter]
    assert package.version == (__version__ if name == "kbridge" else "")
    app = jupyter.start(f"--ServerApp.jpserver_extensions={name}=True")
    assert chosen(app) is ZMQChannelsWebsocketConnection


# -- settings -------------------------------------------------------------------------------


CONFIGURED = {
    "a file": ((), "c.ZMQChannelsWebsocketConnection.{name} = {value}"),
    "the command line": (("--ZMQChannelsWebsocketConnection.{name}={value}",), ""),
}


@pytest.mark.parametrize("way", CONFIGURED)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("iopub_msg_rate_limit", 17.0),  # Jupyter Server's class has this trait
        ("limit_rate", False),
        ("kernel_info_timeout", 3.5),
        ("journal_limit", 1 << 20),  # Jupyter Server's class does not have this trait
        ("resume_timeout", 2.5),
    ],
)
async def test_kbridges_class_reads_the_section_of_jupyter_servers_class(
    jupyter: Jupyter, way: str, name: str, value: object
) -> None:
    argv, config = CONFIGURED[way]
    told = {"name": name, "value": value}
    app = jupyter.start(*(a.format(**told) for a in argv), config=config.format(**told))
    assert getattr(hub_settings(app), name) == value
    assert not jupyter.complaints()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("iopub_msg_rate_limit", 18.0),
        ("iopub_data_rate_limit", 19.0),
        ("rate_limit_window", 20.0),
    ],
)
async def test_deprecated_names_of_settings_still_apply(
    jupyter: Jupyter, name: str, value: object
) -> None:
    app = jupyter.start(f"--ServerApp.{name}={value}")
    assert getattr(hub_settings(app), name) == value
    (complaint,) = jupyter.complaints()
    assert f"Use ZMQChannelsWebsocketConnection.{name}" in complaint


async def test_the_deprecated_name_of_the_dialect_setting_applies(jupyter: Jupyter) -> None:
    app = jupyter.start("--ServerApp.kernel_ws_protocol=v1.kernel.websocket.jupyter.org")
    connection = chosen(app)(config=app.config)
    assert connection.kernel_ws_protocol == "v1.kernel.websocket.jupyter.org"


async def test_settings_of_the_kernel_manager_apply(jupyter: Jupyter) -> None:
    app = jupyter.start(
        "--MappingKernelManager.buffer_offline_messages=False",
        "--MappingKernelManager.allow_tracebacks=False",
        "--MappingKernelManager.kernel_info_timeout=7",
        config="c.MappingKernelManager.allowed_message_types = ['kernel_info_request']",
    )
    settings = hub_settings(app)
    assert settings.resume_timeout == 0
    assert not settings.allow_tracebacks
    assert settings.kernel_info_timeout == 7
    assert settings.allowed_message_types == ("kernel_info_request",)
    assert not jupyter.complaints()


async def test_unset_settings_have_kbridges_defaults(jupyter: Jupyter) -> None:
    app = jupyter.start()
    settings = hub_settings(app)
    usual = HubSettings()
    for name in ("journal_limit", "history_limit", "resume_timeout", "request_limit"):
        assert getattr(settings, name) == getattr(usual, name)
    peers = PeerConnection(parent=None)
    for name in ("limit_rate", "iopub_msg_rate_limit", "iopub_data_rate_limit"):
        assert getattr(settings, name) == getattr(peers, name)


async def test_an_invalid_value_of_the_switch_leaves_jupyter_server_unchanged(
    jupyter: Jupyter,
) -> None:
    app = jupyter.start("--KbridgeExtension.enabled=maybe")
    assert chosen(app) is PeerConnection
    (complaint,) = jupyter.complaints()
    assert "kbridge | extension failed loading" in complaint
    assert "maybe" in complaint
