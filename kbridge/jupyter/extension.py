"""The Jupyter Server extension: replaces Jupyter Server's connection class, and adds routes."""

from __future__ import annotations

import atexit
import inspect
import weakref
from typing import Any, cast

from jupyter_server.gateway.connections import GatewayWebSocketConnection
from jupyter_server.services.kernels.connection.channels import (
    ZMQChannelsWebsocketConnection as JupyterConnection,
)
from jupyter_server.utils import url_path_join
from tornado.ioloop import IOLoop
from traitlets import Bool, CaselessStrEnum, Unicode
from traitlets.config import LoggingConfigurable

from kbridge import __version__
from kbridge.connection.audit import AUDIT, AuditCode, AuditLog
from kbridge.errors import SetupError
from kbridge.hub.context import Log
from kbridge.jupyter import executions, gateway_proxy, page
from kbridge.jupyter.connection import TRACING, ZMQChannelsWebsocketConnection
from kbridge.jupyter.gateway_connection import GatewayConnection
from kbridge.jupyter.metrics import EXPORT
from kbridge.server.safe_log import SafeLog
from kbridge.tracing.start import start_tracing

__all__ = ["KbridgeExtension", "link", "load"]

_SETTING = "kernel_websocket_connection_class"

_CHOSEN: weakref.WeakSet[Any] = weakref.WeakSet()  # servers whose user chose a class


class KbridgeExtension(LoggingConfigurable):
    """Settings of the extension; for all others see ZMQChannelsWebsocketConnection."""

    enabled = Bool(
        True,
        config=True,
        help="Use kbridge for kernel websockets. False: use Jupyter Server's own class.",
    )

    metrics_per_kernel = Bool(
        False,
        config=True,
        help="""True: Jupyter Server's `/metrics` also has the ids of kernels, with a few values of
        each. Prometheus stores new series for each kernel then.""",
    )

    audit_log = Unicode(
        "",
        config=True,
        help="""File to which one line of JSON is appended for each request of a client to execute
        code: time, user, address, kernel, session, and the hash of the code. Empty for none.""",
    )

    audit_code = CaselessStrEnum(
        [str(code) for code in AuditCode],
        "hash",
        config=True,
        help="""`hash`: `audit_log` has the SHA-256 of the code. `text`: also the code itself, which
        may contain secrets.""",
    )

    tracing = Bool(
        False,
        config=True,
        help="""True: executions are sent as OpenTelemetry traces, as its environment variables say
        (`OTEL_EXPORTER_OTLP_ENDPOINT` and others). Needs the extra `otel`.""",
    )

    page = Bool(
        True,
        config=True,
        help="""Show a live view of the kernels, and a console for each, at `/kbridge/` below the
        address of the server.""",
    )

    def take_over(self, serverapp: Any) -> bool:
        """Install kbridge's class unless there is a reason against it; log which.

        Parameters
        ----------
        serverapp : jupyter_server.serverapp.ServerApp
            The initialized server.

        Returns
        -------
        bool
            True if kernel websockets go over kbridge.
        """
        reason = self._reason_against(serverapp)
        if reason:
            self.log.info("kbridge | %s", reason)
            if self.audit_log:
                self.log.warning("kbridge | audit_log has no effect, because kbridge is not used")
            return False
        serverapp.kernel_websocket_connection_class = ZMQChannelsWebsocketConnection
        serverapp.web_app.settings[_SETTING] = ZMQChannelsWebsocketConnection
        if self.audit_log:
            self._begin_audit(serverapp)
        if self.tracing:
            self.begin_tracing(serverapp)
        EXPORT.per_kernel = self.metrics_per_kernel
        EXPORT.register()
        # Extensions that are loaded after this one may still install another class.
        IOLoop.current().add_callback(self._check_in_place, serverapp)
        self.log.info(
            "kbridge | kernel websockets go over kbridge %s"
            " (--KbridgeExtension.enabled=False turns it off)",
            __version__,
        )
        return True

    def _begin_audit(self, serverapp: Any) -> None:
        """Open the audit log; end the server if that fails, because it must not run without."""
        try:
            safe = cast("Log", SafeLog(self.log, {}))
            audit = AuditLog(self.audit_log, AuditCode(self.audit_code), safe)
        except SetupError as error:
            self.log.critical("kbridge | %s", error.reason)
            serverapp.exit(1)
            return
        serverapp.web_app.settings[AUDIT] = audit
        atexit.register(audit.close)

    def begin_tracing(self, serverapp: Any) -> None:
        """Trace executions; without OpenTelemetry the server goes on without traces.

        Parameters
        ----------
        serverapp : jupyter_server.serverapp.ServerApp
            The server.
        """
        try:
            tracing = start_tracing()
        except SetupError as error:
            self.log.error("kbridge | executions are not traced: %s", error.reason)
            return
        serverapp.web_app.settings[TRACING] = tracing.spans
        atexit.register(tracing.close)

    def add_routes(self, serverapp: Any) -> None:
        """Add the routes for executions, if kbridge or a gateway has the kernels' websockets.

        Also add those of the page, if kbridge has the websockets.

        In front of a gateway, also install the connection class that pages need there after a
        reload.

        Without those for executions, pages receive 404 and do without executions.

        Parameters
        ----------
        serverapp : jupyter_server.serverapp.ServerApp
            The initialized server, after `take_over`.
        """
        settings = serverapp.web_app.settings
        used = settings.get(_SETTING, getattr(serverapp, _SETTING))
        if issubclass(used, ZMQChannelsWebsocketConnection):
            routes = executions.ROUTES + (page.ROUTES if self.page else ())
        elif self.enabled and serverapp.gateway_config.gateway_enabled:
            routes = gateway_proxy.ROUTES
            page_config = settings.setdefault("page_config_data", {})
            page_config["kbridgeChannels"] = gateway_proxy.CHANNELS_PATH
            if used is GatewayWebSocketConnection:
                serverapp.kernel_websocket_connection_class = GatewayConnection
                settings[_SETTING] = GatewayConnection
        else:
            return
        serverapp.web_app.add_handlers(
            ".*$",
            [(url_path_join(serverapp.base_url, path), handler) for path, handler in routes],
        )

    def _check_in_place(self, serverapp: Any) -> None:
        used = serverapp.web_app.settings.get(_SETTING)
        if not issubclass(used, ZMQChannelsWebsocketConnection):
            self.log.warning(
                "kbridge | off: another extension has installed %s instead", _name(used)
            )

    def _reason_against(self, serverapp: Any) -> str:
        """Return why kbridge's class is not installed; empty if it will be."""
        chosen = getattr(serverapp, _SETTING)
        used = serverapp.web_app.settings.get(_SETTING, chosen)
        if issubclass(used, ZMQChannelsWebsocketConnection):
            return f"on, by {_SETTING}"
        if not self.enabled:
            return "off, by KbridgeExtension.enabled"
        if serverapp.gateway_config.gateway_enabled:
            return (
                "idle: kernels are behind a gateway, and so are their ZeroMQ sockets;"
                " requests for executions are forwarded to it"
            )
        if used is not chosen:
            return f"idle: another extension has set {_SETTING}, which stays {_name(used)}"
        if chosen is not JupyterConnection or _is_chosen(serverapp):
            return f"idle: {_SETTING} is configured, and stays {_name(chosen)}"
        if _is_patched(chosen):
            return f"idle: another extension has changed methods of {_name(chosen)}, which stays"
        return ""


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _is_patched(cls: type) -> bool:
    """Return True if a method of a class was replaced by code from another file."""
    files = {
        method.__code__.co_filename for method in vars(cls).values() if inspect.isfunction(method)
    }
    return len(files) > 1


def _is_chosen(serverapp: Any) -> bool:
    """Return True if the user chose Jupyter Server's class, which is also the default."""
    # `link` is too early to see the configuration of applications that are loaded later.
    sections = [serverapp.config[name] for name in serverapp.section_names()]
    return serverapp in _CHOSEN or any(_SETTING in section for section in sections)


def link(serverapp: Any) -> None:
    """Note whether the user has chosen a class, before the server reads the default."""
    if serverapp.trait_has_value(_SETTING):
        _CHOSEN.add(serverapp)


def load(serverapp: Any) -> None:
    """Load the extension into a Jupyter Server."""
    extension = KbridgeExtension(parent=serverapp)
    extension.take_over(serverapp)
    extension.add_routes(serverapp)
