"""The listener of `metrics_port`, which serves only `/metrics`."""

from __future__ import annotations

import ipaddress
import logging
import socket
import ssl

from kbridge.errors import ListenError
from kbridge.server.api.metrics import make_metrics_application
from kbridge.server.api.services import Services
from kbridge.server.auth.access_policy import AccessPolicy
from kbridge.server.auth.authenticator import Authenticator
from kbridge.server.config import HttpConfig, MetricsConfig
from kbridge.server.http import listen
from kbridge.server.http.guarded_server import GuardedServer

__all__ = ["MetricsListener"]

_BODY = 16 << 10


class MetricsListener:
    """Binds at once; `accept` serves.

    Parameters
    ----------
    config : MetricsConfig
    http : HttpConfig
        The limits of connections.
    log : logging.Logger

    Raises
    ------
    ListenError
        If the port cannot be used.
    """

    def __init__(self, config: MetricsConfig, http: HttpConfig, log: logging.Logger) -> None:
        self._config = config
        self._http = http
        self._log = log
        self._sockets: list[socket.socket] = []
        self._server: GuardedServer | None = None
        if config.port:
            try:
                self._sockets = listen.bind_all(config.ip, config.port)
            except OSError as error:
                raise ListenError(
                    f"cannot listen on metrics_port {config.port}: {error}"
                ) from error

    def accept(self, services: Services, context: ssl.SSLContext | None) -> None:
        """Serve the metrics of `services`, over TLS if there is a context."""
        if not self._sockets:
            return
        auth = Authenticator(self._policy(), cookie_name="kbridge-metrics")
        self._server = GuardedServer(
            make_metrics_application(services, auth),
            auth=auth,
            limits=self._http.connections,
            log=self._log,
            ssl_options=context,
            max_body_size=_BODY,
            heads=self._http.heads,
        )
        self._server.add_sockets(self._sockets)
        self._sockets = []

    def _policy(self) -> AccessPolicy:
        """Return the rules: pages of other sites must not read metrics through a browser."""
        return AccessPolicy(token=self._config.token, check_hosts=_is_local(self._config.ip))

    async def aclose(self) -> None:
        """Stop listening, and close the connections; may be called twice."""
        for unused in self._sockets:
            unused.close()
        self._sockets = []
        server, self._server = self._server, None
        if server is not None:
            server.stop()
            await server.close_all_connections()


def _is_local(ip: str) -> bool:
    try:
        return ipaddress.ip_address(ip).is_loopback
    except ValueError:
        return ip == "localhost"
