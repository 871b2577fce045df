"""The abstract class and the configurable base (seed 003)."""

import asyncio
import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from jupyter_client.session import Session
from jupyter_server.services.kernels.connection import abc as peer_abc
from jupyter_server.services.kernels.connection import base as peer_base
from tornado.web import Application
from tornado.websocket import WebSocketHandler
from traitlets import HasTraits, TraitError
from traitlets.config import Config, Configurable

from kbridge.connection import base, messages
from kbridge.connection.abc import KernelWebsocketConnectionABC
from kbridge.connection.base import BaseKernelWebsocketConnection
from kbridge.connection.channels import ZMQChannelsWebsocketConnection


class Kernels(Configurable):
    """A manager of kernels without a `kernel_info_timeout`."""


class PatientKernels(Kernels):
    kernel_info_timeout = 7.5


class Kernel(Configurable):
    kernel_id = "an-id"


def connection(kernels: type = PatientKernels, **traits: Any) -> BaseKernelWebsocketConnection:
    return BaseKernelWebsocketConnection(parent=Kernel(parent=kernels()), **traits)


def public(cls: type) -> set[str]:
    """The names that a class adds to what traitlets gives each."""
    return {n for n in dir(cls) if not n.startswith("_")} - set(dir(HasTraits))


def test_the_names_are_those_of_jupyter_server() -> None:
    for ours, theirs in (
        (KernelWebsocketConnectionABC, peer_abc.KernelWebsocketConnectionABC),
        (BaseKernelWebsocketConnection, peer_base.BaseKernelWebsocketConnection),
    ):
        assert public(theirs) <= public(ours)


def test_the_functions_can_be_imported_from_the_module_of_the_base() -> None:
    for name in set(messages.__all__) - {"deserialize_parts"}:
        assert getattr(base, name) is getattr(messages, name)
        assert callable(getattr(peer_base, name))


def test_the_abstract_class_names_what_is_missing() -> None:
    class Half(KernelWebsocketConnectionABC):
        async def connect(self) -> None: ...

    with pytest.raises(TypeError, match=r"disconnect.*handle_incoming.*handle_outgoing"):
        Half()  # type: ignore[abstract]


def test_a_class_with_all_methods_can_be_used() -> None:
    class Whole(KernelWebsocketConnectionABC):
        async def connect(self) -> None: ...

        async def disconnect(self) -> None: ...

        def handle_incoming_message(self, incoming_msg: str | bytes) -> None: ...

        def handle_outgoing_message(self, stream: str, outgoing_msg: list[Any]) -> None: ...

    made = Whole()
    assert inspect.iscoroutinefunction(made.connect)
    asyncio.run(made.disconnect())


def test_bases_count_as_connections() -> None:
    assert issubclass(BaseKernelWebsocketConnection, KernelWebsocketConnectionABC)
    assert issubclass(ZMQChannelsWebsocketConnection, BaseKernelWebsocketConnection)
    assert isinstance(connection(), KernelWebsocketConnectionABC)


def test_the_methods_of_the_base_are_not_implemented() -> None:
    made = connection()
    for unfinished in (made.connect, made.disconnect):
        with pytest.raises(NotImplementedError):
            asyncio.run(unfinished())
    with pytest.raises(NotImplementedError):
        made.handle_incoming_message("{}")
    with pytest.raises(NotImplementedError):
        made.handle_outgoing_message("shell", [])


def test_the_managers_are_found_through_the_parent() -> None:
    made = connection()
    assert isinstance(made.kernel_manager, Kernel)
    assert isinstance(made.multi_kernel_manager, Kernels)
    assert made.kernel_id == "an-id"
    alone = BaseKernelWebsocketConnection(parent=None)
    assert alone.multi_kernel_manager is None


def test_the_timeout_is_that_of_the_manager_by_default() -> None:
    assert connection().kernel_info_timeout == 7.5
    assert connection(Kernels).kernel_info_timeout == 60.0
    config = Config()
    config.BaseKernelWebsocketConnection.kernel_info_timeout = 3.0
    assert connection(config=config).kernel_info_timeout == 3.0


def test_the_session_is_configurable_and_has_the_session_id() -> None:
    config = Config()
    config.Session.session = "a-session"
    made = connection(config=config)
    assert isinstance(made.session, Session)
    assert made.session_id == made.session.session == "a-session"
    assert connection(session=Session(session="given")).session_id == "given"


@pytest.mark.parametrize("value", [None, "", "v1.kernel.websocket.jupyter.org"])
def test_the_preferred_subprotocol_may_be_none_or_empty(value) -> None:
    config = Config()
    config.BaseKernelWebsocketConnection.kernel_ws_protocol = value
    assert connection(config=config).kernel_ws_protocol == value


def test_the_handler_must_be_a_websocket_handler() -> None:
    request: Any = SimpleNamespace(connection=SimpleNamespace(set_close_callback=lambda _: None))
    handler = WebSocketHandler(Application(), request)
    assert connection(websocket_handler=handler).websocket_handler is handler
    with pytest.raises(TraitError):
        connection(websocket_handler=object())
